"""Knowledge conflicts as data: facts, and contexts that contradict them."""

from editlab.data.conflicts.cases import Case, Split, cases_of_facts, cases_of_file, cases_of_relation, split_subjects
from editlab.data.conflicts.texts import FORMATS, Format, Texts, Wording, check_format, say, texts

__all__ = [
    "FORMATS",
    "Case",
    "Format",
    "Split",
    "Texts",
    "Wording",
    "cases_of_facts",
    "cases_of_file",
    "cases_of_relation",
    "check_format",
    "say",
    "split_subjects",
    "texts",
]

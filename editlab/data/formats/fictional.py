"""Fictional knowledge: invented passages with probes of what was learnt (Chang et al. 2024, arXiv 2406.11813)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from editlab.data.formats.base import Flaw, Layout, Malformed, Note, Row, build, identity
from editlab.facts import Prompt, Text

_PROBES = ("mem", "gen", "hard_gen")


class FictionalPassage(BaseModel):
    """An invented passage, and openings to be completed from it; inputs and targets go in pairs.

    Attributes:
        train_context: the passage. paraphrases: the same in other words, where the file has them.
        mem_input: sentences of the passage itself. gen_input: the same in other words.
        hard_gen_input: what takes several sentences to know.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Text = ""
    train_context: Prompt
    mem_input: tuple[Prompt, ...]
    mem_target: tuple[Prompt, ...]
    gen_input: tuple[Prompt, ...]
    gen_target: tuple[Prompt, ...]
    hard_gen_input: tuple[Prompt, ...]
    hard_gen_target: tuple[Prompt, ...]
    paraphrases: tuple[Prompt, ...] = ()


def _matches(row: Row) -> bool:
    return "train_context" in row or {"mem_input", "mem_target"} <= set(row)


def _convert(row: Row, note: Note) -> FictionalPassage:
    values = {name: row[name] for name in FictionalPassage.model_fields if row.get(name) is not None}
    made = build(FictionalPassage, values | {"id": identity(row, "id")}, row)
    flaws = []
    for probe in _PROBES:
        inputs, targets = getattr(made, f"{probe}_input"), getattr(made, f"{probe}_target")
        if len(inputs) != len(targets):
            what = f"has {len(targets)} texts for the {len(inputs)} of {probe}_input"
            flaws.append(Flaw(f"{probe}_target", what, "Give one target for each input."))
    if flaws:
        raise Malformed(*flaws)
    return made


LAYOUT = Layout(
    name="fictional",
    title="fictional knowledge",
    source="https://github.com/kaistAI/factual-knowledge-acquisition",
    marks=("train_context", "mem_input", "mem_target"),
    nested=frozenset({*(f"{p}_{side}" for p in _PROBES for side in ("input", "target")), "paraphrases"}),
    record=FictionalPassage,
    matches=_matches,
    convert=_convert,
    holds="fictional passages",
    use="They are for watching how training acquires and forgets knowledge; they are not for editing.",
)

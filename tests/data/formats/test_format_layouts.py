"""What each layout's fields become, where the subject is found, and what a new layout must offer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from invented_rows import HOLD_FACTS, LAYOUT_OF, MAKERS, WRITERS, write_json, write_lines

from editlab.data import formats
from editlab.data.formats import check, iter_records, layouts, load_facts, load_records, read_fact
from editlab.data.formats.places import place_subject
from editlab.errors import EditlabError, RequestError, UnknownName
from editlab.facts import Fact, Question

EASYEDIT, ZSRE, KNOWEDIT = MAKERS["easyedit"](0), MAKERS["zsre"](0), MAKERS["knowedit"](0)


@pytest.mark.parametrize("name", list(MAKERS))
@pytest.mark.parametrize("kind", list(WRITERS))
def test_every_layout_is_recognised_in_every_kind_of_file(name: str, kind: str, tmp_path: Path) -> None:
    # The file's name says nothing.
    path = WRITERS[kind](tmp_path / "data.bin", [MAKERS[name](i) for i in range(7)])
    loaded = load_records(path)
    assert loaded.layout.name == LAYOUT_OF[name]
    assert len(loaded.records) == 7
    assert loaded.report.is_ok
    plain = load_records(write_lines(tmp_path / "plain", [MAKERS[name](i) for i in range(7)]))
    assert loaded.records == plain.records
    assert list(iter_records(path, layout=LAYOUT_OF[name])) == list(loaded.records)


@pytest.mark.parametrize("name", HOLD_FACTS)
def test_every_layout_of_facts_gives_the_same_kind_of_fact(name: str, tmp_path: Path) -> None:
    row = MAKERS[name](0)
    (fact,) = load_facts(write_json(tmp_path / "a.json", [row]))
    assert fact == read_fact(row).model_copy(update={"id": fact.id})
    assert fact.id
    assert fact.subject.lower() == "arvenport 0"
    assert fact.prompt.count("{}") == 1
    assert fact.text.startswith(fact.before + fact.subject)
    if name not in ("rows", "counterfact"):
        assert fact.text == (row.get("src") or row.get("text") or row["prompt"])


@pytest.mark.parametrize("name", HOLD_FACTS)
def test_a_written_fact_reads_as_itself(name: str, tmp_path: Path) -> None:
    facts = load_facts(write_json(tmp_path / "a.json", [MAKERS[name](i) for i in range(5)]))
    assert load_facts(write_lines(tmp_path / "b.jsonl", [f.model_dump_json() for f in facts])) == facts
    assert [read_fact(f.model_dump()) for f in facts] == facts
    assert [read_fact(f) for f in facts] == facts


def test_counterfact_keeps_all_its_prompts() -> None:
    fact = read_fact(MAKERS["counterfact"](0))
    assert (fact.id, fact.relation, fact.target_new, fact.target_true) == ("0", "P1", "Dorn", "Elst")
    assert fact.paraphrases == ("Bells ring. Ships come to Arvenport 0 in",)
    assert fact.neighbours == (Question(prompt="The harbour of Belmere lies in", answers=("Elst",)),)
    assert fact.attributes == ("The harbour of Quay Dorn lies in",)
    assert fact.generation_prompts == ("Arvenport 0 is known for",)


def test_easyedit_knows_neighbours_by_their_answer() -> None:
    assert read_fact(EASYEDIT).neighbours == (Question(prompt="The harbour of Belmere lies in", answers=("Elst",)),)
    other = read_fact(EASYEDIT | {"locality_ground_truth": "Vask"})
    assert other.neighbours == ()
    assert other.locality == (
        Question(prompt="The harbour of Belmere lies in", answers=("Vask",), name="neighborhood"),
    )
    both = read_fact(EASYEDIT | {"locality_prompt": ["a", "b"], "locality_ground_truth": ["Elst", ["Vask", "V."]]})
    assert both.neighbours == (Question(prompt="a", answers=("Elst",)),)
    assert both.locality[0].answers == ("Vask", "V.")


@pytest.mark.parametrize(
    "extra",
    [
        {"portability": {"Recalled Relation": "r", "New Question": "Coin?", "New Answer": "mark"}},
        {"portability_prompt": "Coin?", "portability_ground_truth": "mark"},
        {"portability_prompt": ["Coin?"], "portability_ground_truth": ["mark"]},
        {"portability_prompt": ["Coin?"], "portability_ground_truth": "mark"},
        {"portability_prompt": ["Coin?"], "portability_ground_truth": [["mark"]]},
    ],
)
def test_easyedit_portability_has_two_spellings(extra: dict[str, Any]) -> None:
    assert read_fact(EASYEDIT | extra).portability == (Question(prompt="Coin?", answers=("mark",), name="one_hop"),)
    assert read_fact(ZSRE | {"portability": None} | extra).portability[0].answers == ("mark",)


def test_easyedit_takes_text_and_lists_where_authors_use_both() -> None:
    fact = read_fact(EASYEDIT | {"ground_truth": ["Elst", "E."], "rephrase_prompt": ["one", "two"]})
    assert (fact.target_true, fact.paraphrases) == ("Elst", ("one", "two"))
    temporal = {k: v for k, v in EASYEDIT.items() if k not in ("ground_truth", "rephrase_prompt")}
    assert read_fact(temporal | {"ood_rephrase": "Other words"}).paraphrases == ("Other words",)
    mixed = {k: v for k, v in temporal.items() if not k.startswith("locality")}
    mixed |= {"loc": "nq question: who", "loc_ans": "Ina", "rephrase_prompt": "r"}
    assert read_fact(mixed).locality[0].prompt == "nq question: who"


def test_zsre_asks_with_one_question_mark() -> None:
    for loc in ("nq question: who built it", "nq question: who built it?", "nq question: who built it? "):
        (question,) = read_fact(ZSRE | {"loc": loc}).locality
        assert question == Question(prompt="nq question: who built it?", answers=("Ina Vos",), name="neighborhood")


@pytest.mark.parametrize(
    ("loc", "asked"),
    [
        ("青石镇属于哪个省？", "青石镇属于哪个省？"),
        ("青石镇属于哪个省", "青石镇属于哪个省？"),
        ("ما عاصمة فرنسا؟", "ما عاصمة فرنسا؟"),
        ("ποιος το έχτισε;", "ποιος το έχτισε;"),
        ('who sang "who are you?"', 'who sang "who are you?"?'),
        ("(who built it?)", "(who built it?)"),
    ],
)
def test_a_question_mark_of_any_script_is_one(loc: str, asked: str) -> None:
    (question,) = read_fact(ZSRE | {"loc": loc}).locality
    assert question.prompt == asked


def test_knowedit_takes_every_alias_of_every_answer_once() -> None:
    fact = read_fact(KNOWEDIT)
    assert {q.name: q.answers for q in fact.portability} == {
        "Logical_Generalization": ("yes", "it is"),
        "Reasoning": ("Isk", "River Isk"),
        "Subject_Aliasing": ("Dorn",),
    }
    assert fact.locality == (Question(prompt="Its mayor is", answers=("Ina Vos",), name="Relation_Specificity"),)
    assert fact.target_true == "Elst"
    lists = {"neighborhood": {"prompt": ["a", "b"], "ground_truth": ["x", ["y", "z"]]}, "none": None}
    assert [q.answers for q in read_fact(KNOWEDIT | {"locality": lists}).locality] == [("x",), ("y", "z")]
    assert read_fact(KNOWEDIT | {"locality": {}, "portability": {}}).portability == ()


def test_what_is_empty_in_knowedit_is_noted(tmp_path: Path) -> None:
    odd = {"A": [{"prompt": "", "ground_truth": [["x"]]}, {"prompt": "Who", "ground_truth": [[""]]}]}
    path = write_json(tmp_path / "k.json", [KNOWEDIT | {"locality": odd}])
    (fact,) = load_facts(path)
    assert fact.locality == (Question(prompt="Who", name="A"),)
    assert check(path).remarks() == [
        "1 rows: locality: an empty prompt is left out (record 1)",
        "1 rows: locality: a question has no answer; it is kept without (record 1)",
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([{"ent": "x", "pos": ["a"], "neg": ["b"]}] * 30, "ConvSent"),
        ({"success": [{"question": "q", "ground_truth": "g", "target_new": "t"}] * 30, "locality": []}, "Sanitation"),
    ],
)
def test_knowedit_without_facts_is_refused_in_one_sentence(content: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "k.json"
    path.write_text(json.dumps(content))
    with pytest.raises(RequestError, match=words) as caught:
        load_facts(path)
    assert len(caught.value.what.splitlines()) == 2


def test_the_prompt_of_known_1000_may_go_on_after_its_template(tmp_path: Path) -> None:
    (record,) = load_records(write_json(tmp_path / "k.json", [MAKERS["known"](0)])).records
    assert record.prompt == "Arvenport 0 is in the country of"  # type: ignore[attr-defined]
    assert record.template == "{} is in the country"  # type: ignore[attr-defined]
    with pytest.raises(RequestError, match="does not occur in the prompt"):
        load_records(write_json(tmp_path / "k.json", [MAKERS["known"](0) | {"subject": "Belmere"}]))


@pytest.mark.parametrize(("name", "words"), [("known", "tracing"), ("conflictqa", "memory"), ("fictional", "training")])
def test_records_of_another_kind_say_what_they_are_for(name: str, words: str, tmp_path: Path) -> None:
    path = write_json(tmp_path / "other.json", [MAKERS[name](0)])
    with pytest.raises(RequestError, match=words) as caught:
        load_facts(path)
    assert caught.value.what.startswith(f"'{path.name}' holds {layouts()[name].holds}")
    with pytest.raises(RequestError, match="Row 3 is one of the"):
        read_fact(MAKERS[name](0), "Row 3")


@pytest.mark.parametrize(
    ("prompt", "subject", "template", "spelled", "notes"),
    [
        ("Is Elst big?", "Elst", "Is {} big?", "Elst", 0),
        ("Which Elstian town in Elst is", "Elst", "Which Elstian town in {} is", "Elst", 0),
        ("In Elst, is Elst big?", "Elst", "In Elst, is {} big?", "Elst", 1),
        ("Is elst big?", "Elst", "Is {} big?", "elst", 1),
        ("Is Ödeby’s  Mill big?", "Odeby's mill", "Is {} big?", "Ödeby’s  Mill", 1),
        ("Is O\u0308deby – old – big?", "Ödeby - old", "Is {} – big?", "O\u0308deby – old", 1),
        ("Elsts are", "Elst", "{}s are", "Elst", 0),
        ("埃尔斯特是", "埃尔斯特", "{}是", "埃尔斯特", 0),
        ("Is {} big?", "Elst", "Is {} big?", "Elst", 0),
    ],
)
def test_where_the_subject_is_found(prompt: str, subject: str, template: str, spelled: str, notes: int) -> None:
    noted: list[str] = []
    found = place_subject(prompt, subject, "src", lambda field, what: noted.append(what))
    assert found == (template, spelled)
    assert len(noted) == notes
    assert template.replace("{}", spelled) == prompt or "{}" in prompt


def test_a_choice_of_place_is_noted_with_its_row(tmp_path: Path) -> None:
    rows = [MAKERS["zsre"](0), MAKERS["zsre"](1) | {"subject": "Elst", "src": "In elst, is Elst, or ELST, big? Elst!"}]
    report = check(write_json(tmp_path / "z.json", rows))
    assert report.is_ok
    assert report.remarks() == ["1 rows: src: names the subject several times; the last place is taken (record 2)"]


def test_an_edit_to_what_is_true_is_noted(tmp_path: Path) -> None:
    report = check(write_json(tmp_path / "z.json", [ZSRE | {"alt": "Elst"}]))
    assert "is also the true answer" in report.remarks()[0]


def test_a_layout_is_a_module_with_a_page() -> None:
    folder = Path(formats.__file__).parent
    assert {p.stem for p in folder.glob("*.md")} == set(layouts())
    for name, layout in layouts().items():
        assert layout.name == name
        assert (folder / f"{name}.py").is_file()
        page = (folder / f"{name}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {name}: ")
        assert all(f"`{mark}`" in page for mark in layout.marks)
        assert "**Pitfalls.**" in page


def test_an_unknown_layout_is_refused(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", [EASYEDIT])
    with pytest.raises(UnknownName, match="Did you mean 'zsre'"):
        load_records(path, layout="zsr")


@pytest.mark.parametrize("row", [None, 1, [], "text", {1: 2}, {"src": {}}, {"requested_rewrite": []}, {"prompt": {}}])
def test_whatever_is_given_only_our_errors_come_out(row: Any) -> None:
    with pytest.raises(EditlabError, match="Request 3"):
        read_fact(row, "Request 3")


def test_a_row_with_the_fields_of_two_layouts_is_refused() -> None:
    with pytest.raises(RequestError, match="has fields of counterfact and easyedit"):
        read_fact(MAKERS["counterfact"](0) | EASYEDIT)


def test_facts_are_of_the_same_class_everywhere() -> None:
    assert [x.record is Fact for x in layouts().values()].count(True) == 5

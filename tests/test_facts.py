"""Facts from every layout that is read, and a sentence with file, row and field for everything that is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from editlab.errors import ConfigError, EditlabError, RequestError
from editlab.facts import Fact, load_facts, read_fact

OWN = {
    "id": "one",
    "prompt": "The capital of {} is",
    "subject": "France",
    "target_new": "Rome",
    "target_true": "Paris",
    "paraphrases": ["France's capital is"],
    "neighbours": ["The capital of Spain is"],
}
# Field names as in kmeng01/rome's counterfact.json.
COUNTERFACT = {
    "case_id": 7,
    "pararel_idx": 2796,
    "requested_rewrite": {
        "prompt": "The capital of {} is",
        "relation_id": "P36",
        "target_new": {"str": "Rome", "id": "Q220"},
        "target_true": {"str": "Paris", "id": "Q90"},
        "subject": "France",
    },
    "paraphrase_prompts": ["France's capital is"],
    "neighborhood_prompts": ["The capital of Spain is"],
    "attribute_prompts": ["The capital of Italy is"],
    "generation_prompts": ["France is"],
}
# Field names as in EasyEdit's counterfact-edit.json: the subject is spelled out in the prompt.
EASYEDIT = {
    "case_id": 7,
    "prompt": "The capital of France is",
    "target_new": "Rome",
    "subject": "France",
    "ground_truth": "Paris",
    "rephrase_prompt": "France's capital is",
    "locality_prompt": "The capital of Spain is",
    "locality_ground_truth": "Madrid",
}
# Field names as in MEND's zsre_mend_eval.json.
ZSRE = {
    "subject": "France",
    "src": "What is the capital of France?",
    "pred": "Paris",
    "rephrase": "Which city is France's capital?",
    "alt": "Rome",
    "answers": ["Paris", "City of Paris"],
    "loc": "nq question: where is Madrid",
    "loc_ans": "Spain",
    "cond": "Paris >> Rome || What is the capital of France?",
}


def write(folder: Path, *rows: Any, name: str = "facts.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("layout", [OWN, COUNTERFACT, EASYEDIT, ZSRE], ids=["own", "counterfact", "easyedit", "zsre"])
@pytest.mark.parametrize("as_list", [False, True])
def test_every_layout_gives_the_same_kind_of_fact(layout: dict[str, Any], as_list: bool, tmp_path: Path) -> None:
    path = write(tmp_path, *([json.dumps([layout], indent=2)] if as_list else [layout]))
    (fact,) = load_facts(path)
    assert fact == read_fact(layout).model_copy(update={"id": fact.id})
    assert fact.id
    assert (fact.subject, fact.target_new, fact.target_true) == ("France", "Rome", "Paris")
    assert len(fact.paraphrases) == len(fact.neighbours) == 1
    assert fact.prompt.count("{}") == 1
    assert "France" in fact.text
    assert fact.text == (ZSRE["src"] if layout is ZSRE else "The capital of France is")
    assert fact.text.startswith(fact.before + fact.subject)


def test_a_written_fact_reads_as_itself(tmp_path: Path) -> None:
    fact = read_fact(OWN)
    assert read_fact(fact) is fact
    assert load_facts(write(tmp_path, fact.model_dump_json())) == [fact]


def test_rows_without_an_id_are_numbered_and_blank_lines_skipped(tmp_path: Path) -> None:
    row = {k: v for k, v in OWN.items() if k != "id"}
    facts = load_facts(write(tmp_path, row, "", "   ", row))
    assert [f.id for f in facts] == ["0", "1"]


def test_white_space_around_texts_is_not_part_of_them() -> None:
    fact = read_fact(OWN | {"subject": " France ", "target_new": " Rome ", "target_true": " ", "prompt": "On {}: "})
    assert (fact.subject, fact.target_new, fact.target_true, fact.prompt) == ("France", "Rome", None, "On {}:")


@pytest.mark.parametrize(
    ("prompt", "subject", "text"),
    [
        ("The set {a, b} of {} is", "France", "The set {a, b} of France is"),
        ("f({x}) in {} }{", "{0}", "f({x}) in {0} }{"),
        ("A {name} of France", "France", "A {name} of France"),
        ("The {} is", "{}", "The {} is"),
        ("Say {}%s%d\\n", "100%", "Say 100%%s%d\\n"),
    ],
)
def test_braces_elsewhere_do_no_harm(prompt: str, subject: str, text: str) -> None:
    assert read_fact(OWN | {"prompt": prompt, "subject": subject}).text == text


def test_other_line_ends_bom_and_unicode_separators_are_read(tmp_path: Path) -> None:
    odd = OWN | {"subject": "Fr\u2028an\x85ce\u2029"}
    line = json.dumps(odd, ensure_ascii=False)
    path = tmp_path / "facts.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + f"{line}\r\n{line}\r\n".encode())
    assert [f.subject for f in load_facts(path)] == ["Fr\u2028an\x85ce"] * 2


LONG = "x" * 2_000_000
MALFORMED = [
    (OWN | {"subject": None}, "subject", "Field required"),
    ({k: v for k, v in OWN.items() if k != "subject"}, "subject", "Field required"),
    (OWN | {"subject": "   "}, "subject", "must not be empty"),
    (OWN | {"target_new": ""}, "target_new", "must not be empty"),
    (OWN | {"target_new": 12}, "target_new", "valid string"),
    (OWN | {"target_new": True}, "target_new", "valid string"),
    (OWN | {"target_new": float("nan")}, "target_new", "valid string"),
    (OWN | {"target_true": ["Paris"]}, "target_true", "valid string"),
    (OWN | {"id": 3}, "id", "valid string"),
    (OWN | {"prompt": ["a {}"]}, "prompt", "valid string"),
    (OWN | {"prompt": "The capital is"}, "subject 'France'", "does not occur in the prompt"),
    (OWN | {"prompt": "France and France are"}, "subject 'France'", "occurs 2 times in the prompt"),
    (OWN | {"prompt": "From {} to {} is"}, "prompt", "needs exactly one {} for the subject, has 2"),
    (OWN | {"paraphrases": "France's capital is"}, "paraphrases", "valid tuple"),
    (OWN | {"paraphrases": ["fine", 4]}, "paraphrases.1", "valid string"),
    (OWN | {"neighbours": [" "]}, "neighbours", "holds an empty prompt"),
    (OWN | {"neighbors": []}, "neighbors", "not permitted"),
    (OWN | {"subject": "\ud800"}, "subject", "not valid Unicode"),
    (OWN | {"paraphrases": ["a\udfff"]}, "paraphrases.0", "not valid Unicode"),
    (OWN | {"prompt": "a", "subject": LONG}, "subject 'xxx", "does not occur in the prompt 'a'"),
    (OWN | {LONG: 1}, "xxx", "not permitted"),
    ("null", "NoneType", "not an object"),
    ('"text"', "str", "not an object"),
    ("[1]", "list", "not an object"),
    ("NaN", "float", "not an object"),
    ("{'prompt': 1}", "", "not valid JSON"),
    ('{"prompt": "cut', "", "not valid JSON"),
    ('{"a":' * 100_000, "", "not valid JSON"),
    ('{"id": ' + "9" * 5000 + "}", "", "not valid JSON"),
    (COUNTERFACT | {"requested_rewrite": "France"}, "requested_rewrite", "not an object"),
    (COUNTERFACT | {"requested_rewrite": {}}, "requested_rewrite.subject", "Field required"),
    (
        COUNTERFACT | {"requested_rewrite": COUNTERFACT["requested_rewrite"] | {"target_new": {"id": "Q220"}}},
        "requested_rewrite.target_new.str",
        "Field required",
    ),
    (COUNTERFACT | {"neighborhood_prompts": None}, "neighborhood_prompts", "Field required"),
    (COUNTERFACT | {"paraphrase_prompts": [1]}, "paraphrase_prompts.0", "valid string"),
    (EASYEDIT | {"ground_truth": ["Paris"]}, "ground_truth", "valid string"),
    (EASYEDIT | {"rephrase_prompt": 1}, "rephrase_prompt.0", "valid string"),
    (EASYEDIT | {"subject": "Spain"}, "subject 'Spain'", "does not occur"),
    ({k: v for k, v in ZSRE.items() if k != "alt"}, "alt", "Field required"),
    (ZSRE | {"src": 1}, "src", "valid string"),
    (ZSRE | {"loc": {}}, "loc.0", "valid string"),
    (ZSRE | {"answers": [1]}, "answers", "valid string"),
]


@pytest.mark.parametrize(("row", "field", "words"), MALFORMED, ids=[str(i) for i in range(len(MALFORMED))])
def test_a_malformed_row_is_named_with_file_line_and_field(row: Any, field: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        load_facts(write(tmp_path, OWN, row))
    what = caught.value.what
    assert what.startswith("1 of 2 rows are malformed:\nfacts.jsonl line 2")
    assert field in what
    assert words in what
    assert len(what) < 1000
    what.encode()


@pytest.mark.parametrize("row", [r for r, _, words in MALFORMED if words != "not valid JSON"])
def test_in_a_json_list_the_record_is_named(row: Any, tmp_path: Path) -> None:
    row = json.loads(row) if isinstance(row, str) else row
    with pytest.raises(RequestError, match=r"facts\.json record 2"):
        load_facts(write(tmp_path, json.dumps([OWN, row, OWN]), name="facts.json"))


def test_all_malformed_rows_are_told_at_once(tmp_path: Path) -> None:
    rows = [OWN, "not json", OWN | {"subject": 1, "target_new": 2}, OWN | {"prompt": "{} {}"}]
    with pytest.raises(RequestError) as caught:
        load_facts(write(tmp_path, *rows))
    what = caught.value.what
    assert what.startswith("3 of 4 rows")
    assert all(f"line {n}" in what for n in (2, 3, 4))
    assert "subject:" in what
    assert "target_new:" in what


def test_a_long_list_of_problems_is_cut(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"and 30 more") as caught:
        load_facts(write(tmp_path, *[OWN | {"prompt": "none"}] * 50))
    assert len(caught.value.what.splitlines()) == 22


@pytest.mark.parametrize("content", [b"", b"\n \n", b"[]", b"\xef\xbb\xbf"])
def test_a_file_without_facts_says_so(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_bytes(content)
    with pytest.raises(RequestError, match="holds no fact"):
        load_facts(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("Ä".encode("latin-1"), "cannot be read as UTF-8"),
        (json.dumps(OWN).encode("utf-16"), "cannot be read as UTF-8"),
        (bytes(range(128, 256)), "cannot be read as UTF-8"),
        (b"[{]", "not valid JSON"),
        (b"[" * 200_000, "not valid JSON"),
    ],
)
def test_a_file_that_is_no_facts_file_says_why(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        load_facts(path)


def test_a_missing_file_and_a_folder_say_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no file"):
        load_facts(tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_facts(tmp_path)


@pytest.mark.parametrize("row", [None, 1, [], "text", {1: 2}, {"src": {}}, {"requested_rewrite": []}, {"prompt": {}}])
def test_whatever_is_given_only_our_errors_come_out(row: Any) -> None:
    with pytest.raises(EditlabError, match="Request 3"):
        read_fact(row, "Request 3")


def test_a_huge_but_valid_fact_is_read() -> None:
    assert read_fact(OWN | {"target_new": LONG}).target_new == LONG


def test_facts_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Fact(prompt="a {}", subject="b", target_new="c").subject = "d"  # type: ignore[misc]

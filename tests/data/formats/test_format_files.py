"""Files of every kind, whole and damaged: what is read, and the sentence with file, row, field and fix if not."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from invented_rows import MAKERS, WRITERS, write_csv, write_json, write_lines

from editlab.data.formats import Problem, check, iter_records, json_text, load_facts, load_records, read_fact
from editlab.errors import ConfigError, RequestError, UnknownName

OWN, COUNTERFACT, EASYEDIT, ZSRE = (MAKERS[name](0) for name in ("rows", "counterfact", "easyedit", "zsre"))
NO_ID = {k: v for k, v in OWN.items() if k != "id"}
LONG = "x" * 2_000_000
REWRITE = COUNTERFACT["requested_rewrite"]


def test_rows_without_an_id_are_numbered_and_blank_lines_skipped(tmp_path: Path) -> None:
    facts = load_facts(write_lines(tmp_path / "a.jsonl", [NO_ID, "", "   ", NO_ID]))
    assert [f.id for f in facts] == ["0", "1"]


def test_a_number_is_that_of_the_row_even_after_a_skipped_one(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [NO_ID, "no json", NO_ID])
    assert [f.id for f in load_facts(path, skip_malformed=True)] == ["0", "2"]


def test_a_second_id_is_refused_with_both_rows(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"a.jsonl line 3: id: 'own-0' is the id of line 1 too"):
        load_facts(write_lines(tmp_path / "a.jsonl", [OWN, NO_ID, OWN]))
    with pytest.raises(RequestError, match=r"line 2: id: '1' \(its number, for it has none\) is the id of line 1"):
        load_facts(write_lines(tmp_path / "b.jsonl", [OWN | {"id": "1"}, NO_ID]))


def test_other_line_ends_bom_and_unicode_separators_are_read(tmp_path: Path) -> None:
    line = json.dumps(NO_ID | {"subject": "Arv\u2028en\x85port\u2029"}, ensure_ascii=False)
    path = tmp_path / "facts.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + f"{line}\r\n{line}\r\n".encode())
    assert [f.subject for f in load_facts(path)] == ["Arv\u2028en\x85port"] * 2
    path.write_bytes(b"\xef\xbb\xbf" + f"[{line},\r\n{line}]\r\n".encode())
    assert [f.subject for f in load_facts(path)] == ["Arv\u2028en\x85port"] * 2


def test_one_object_is_one_record(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(OWN, indent=2))
    assert load_facts(path) == [read_fact(OWN)]


def test_what_cells_of_a_table_mean(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    head = "prompt;subject;target_new;target_true;paraphrases;id\r\n"
    path.write_text(head + 'The port of {} is;Elst;NA;;"[""a"", ""b""]";012\r\n"Two\nlines of {}";null;None;"";;\r\n')
    first, second = load_facts(path)
    assert (first.id, first.target_new, first.target_true, first.paraphrases) == ("012", "NA", None, ("a", "b"))
    assert (second.subject, second.target_new, second.prompt) == ("null", "None", "Two\nlines of {}")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a {},b", "line 3: has 2 cells under 4 column names"),
        ("a {},b,c,d,e", "line 3: has 5 cells under 4"),
        ("a {},b,c,not a list", "line 3: paraphrases: Input should be a valid tuple, is text"),
        ('a {},b,c,"[1]"', "line 3: paraphrases.0: Input should be a valid string, is a number"),
        ("a {},b,c,[1", "line 3: paraphrases: not valid JSON"),
        ('a {},b,c,"x', "line 3: not valid CSV"),
        (",b,c,", "line 3: prompt: Field required"),
        ("ä", "line 3: cannot be read as UTF-8 (byte 0xe4)"),
    ],
)
def test_a_bad_line_of_a_table_is_named(line: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"prompt,subject,target_new,paraphrases\na {},b,c,\n" + line.encode("latin-1") + b"\n")
    assert words in check(path).text()


def test_a_column_twice_and_a_field_twice_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,subject,subject,target_new\na {},b,b,c\n")
    assert "names the column 'subject' twice" in check(path).text()
    twice = '{"prompt": "a {}", "subject": "b", "subject": "c", "target_new": "d"}'
    for name, text in (("a.jsonl", f"{json.dumps(OWN)}\n{twice}"), ("a.json", f"[{json.dumps(OWN)}, {twice}]")):
        (tmp_path / name).write_text(text)
        assert "names 'subject' twice" in check(tmp_path / name).text()


def test_numbers_in_parquet_are_no_text_and_nan_is_missing(tmp_path: Path) -> None:
    import pandas as pd

    path = tmp_path / "a.parquet"
    frame = pd.DataFrame([{"prompt": "a {}", "subject": "b", "target_new": "c", "target_true": float("nan")}])
    frame.to_parquet(path)
    assert load_facts(path)[0].target_true is None
    frame.assign(target_new=1.5).to_parquet(path)
    with pytest.raises(RequestError, match=r'a.parquet row 1: target_new: .*Quote this value: "1.5"'):
        load_facts(path)


MALFORMED = [
    (OWN | {"subject": None}, "subject", "Field required"),
    ({k: v for k, v in OWN.items() if k != "subject"}, "subject", "Field required"),
    (OWN | {"subject": "   "}, "subject", "must not be empty"),
    (OWN | {"target_new": ""}, "target_new", "must not be empty"),
    (OWN | {"target_new": 12}, "target_new", 'Quote this value: "12"'),
    (OWN | {"target_new": True}, "target_new", "valid string, is true or false"),
    (OWN | {"target_new": float("nan")}, "target_new", "valid string"),
    (OWN | {"target_true": ["Elst"]}, "target_true", "valid string, is a list"),
    (OWN | {"id": 3}, "id", "valid string"),
    (OWN | {"prompt": ["a {}"]}, "prompt", "valid string"),
    (OWN | {"prompt": "The harbour is"}, "subject 'Arvenport 0'", "does not occur in the prompt"),
    (OWN | {"prompt": "Arvenport 0 and Arvenport 0 are"}, "subject 'Arvenport 0'", "occurs 2 times in the prompt"),
    (OWN | {"prompt": "From {} to {} is"}, "prompt", "needs exactly one {} for the subject, has 2"),
    (OWN | {"paraphrases": "one"}, "paraphrases", "valid tuple"),
    (OWN | {"paraphrases": ["fine", 4]}, "paraphrases.1", "valid string"),
    (OWN | {"neighbours": [" "]}, "neighbours.0", "must not be empty"),
    (OWN | {"attributes": [""]}, "attributes.0", "must not be empty"),
    (OWN | {"locality": [{"prompt": "a", "answers": [1]}]}, "locality.0.answers.0", "valid string"),
    (OWN | {"locality": [{"answers": []}]}, "locality.0.prompt", "Field required"),
    (OWN | {"neighbors": []}, "neighbors", "Did you mean 'neighbours'?"),
    (OWN | {"subject": "\ud800"}, "subject", "not valid Unicode"),
    (OWN | {"subject": "a\0b"}, "subject", "control character U+0000"),
    (OWN | {"paraphrases": ["a\udfff"]}, "paraphrases.0", "not valid Unicode"),
    (OWN | {"prompt": "a", "subject": LONG}, "subject 'xxx", "does not occur in the prompt 'a'"),
    (OWN | {"target_new": LONG}, "target_new", "has 2,000,000 characters"),
    (OWN | {LONG: 1}, "xxx", "not permitted"),
    (OWN | {"prompt": "\ud800"}, "subject 'Arvenport 0'", "does not occur in the prompt '\\ud800'"),
    (OWN | {"a\ud800": 1}, "a\\ud800", "not"),
    ("null", "NoneType", "not an object"),
    ('"text"', "str", "not an object"),
    ("[1]", "list", "not an object"),
    ("NaN", "float", "not an object"),
    ("{'prompt': 1}", "", "not valid JSON"),
    ('{"prompt": "cut', "", "not valid JSON"),
    ('{"a":' * 100_000, "", "not valid JSON"),
    ('{"id": ' + "9" * 5000 + "}", "", "not valid JSON"),
    (COUNTERFACT, "", "is of the layout counterfact, the file is of rows"),
]
MALFORMED_ELSEWHERE = [
    (COUNTERFACT, {"requested_rewrite": "x"}, "requested_rewrite", "is text, not an object"),
    (COUNTERFACT, {"requested_rewrite": {}}, "requested_rewrite.subject", "Field required"),
    (
        COUNTERFACT,
        {"requested_rewrite": REWRITE | {"target_new": {"id": "Q1"}}},
        "requested_rewrite.target_new.str",
        "Field required",
    ),
    (COUNTERFACT, {"neighborhood_prompts": None}, "neighborhood_prompts", "Field required"),
    (COUNTERFACT, {"paraphrase_prompts": [1]}, "paraphrase_prompts.0", "valid string"),
    (COUNTERFACT, {"case_id": 1.5}, "case_id", "is a number"),
    (EASYEDIT, {"ground_truth": {}}, "ground_truth", "valid string"),
    (EASYEDIT, {"rephrase_prompt": 1}, "rephrase_prompt", "valid string"),
    (EASYEDIT, {"rephrase_prompt": ["a", 1]}, "rephrase_prompt.1", "valid string"),
    (EASYEDIT, {"subject": "Belmere"}, "subject 'Belmere'", "does not occur"),
    (EASYEDIT, {"locality_prompt": ["a", "b"]}, "locality_ground_truth", "has 1 answers for 2 prompts"),
    (EASYEDIT, {"locality_prompt": 1}, "locality_prompt", "valid string"),
    (ZSRE, {"alt": None}, "alt", "Field required"),
    (ZSRE, {"alt": ""}, "alt", "must not be empty"),
    (ZSRE, {"src": 1}, "src", "valid string"),
    (ZSRE, {"loc": {}}, "loc", "valid string"),
    (ZSRE, {"loc_ans": 4}, "loc_ans", "is a number, not an answer"),
    (ZSRE, {"answers": [1]}, "answers", "valid string"),
    (ZSRE, {"portability": "p"}, "portability", "is text, not an object"),
    (MAKERS["knowedit"](0), {"locality": {"A": ["x"]}}, "locality.A.0", "is not an object with prompt"),
    (MAKERS["knowedit"](0), {"locality": {"A": [{"prompt": 1}]}}, "locality.A.0.prompt", "valid string"),
    (MAKERS["wikibio"](0), {"labels": 1}, "labels", "valid string"),
    (MAKERS["wikibio"](0), {"concept": "Belmere"}, "text", "does not occur"),
    (MAKERS["known"](0), {"attribute": None}, "attribute", "Field required"),
    (MAKERS["known"](0), {"relation_id": 3}, "relation_id", "valid string"),
    (MAKERS["conflictqa"](0), {"popularity": "many"}, "popularity", "valid"),
    (MAKERS["conflictqa"](0), {"counter_answer": 1}, "counter_answer", "valid string"),
    (MAKERS["fictional"](0), {"mem_target": ["one"]}, "mem_target", "has 1 texts for the 3 of mem_input"),
    (MAKERS["fictional"](0), {"gen_input": "a"}, "gen_input", "valid tuple"),
]
CASES = [(OWN, *case) for case in MALFORMED] + [
    (good, good | change, field, words) for good, change, field, words in MALFORMED_ELSEWHERE
]


@pytest.mark.parametrize(("good", "row", "field", "words"), CASES, ids=[str(i) for i in range(len(CASES))])
def test_a_malformed_row_is_named_with_file_row_and_field(
    good: dict[str, Any], row: Any, field: str, words: str, tmp_path: Path
) -> None:
    paths = {"facts.jsonl line 2": write_lines(tmp_path / "facts.jsonl", [good, row])}
    if words != "not valid JSON":
        value = json.loads(row) if isinstance(row, str) else row
        (tmp_path / "facts.json").write_text(json.dumps([good, value, good | {"id": "2", "case_id": 2}]))
        paths["facts.json record 2"] = tmp_path / "facts.json"
    for place, path in paths.items():
        with pytest.raises(RequestError) as caught:
            load_records(path)
        what = caught.value.what
        assert what.splitlines()[1].startswith(place)
        assert field in what
        assert words in what
        assert len(what) < 1500
        what.encode()


def test_all_malformed_rows_are_told_at_once_and_skipped_when_asked(tmp_path: Path) -> None:
    rows = [OWN, "not json", NO_ID | {"subject": 1, "target_new": 2}, NO_ID | {"prompt": "{} {}"}]
    path = write_lines(tmp_path / "facts.jsonl", rows)
    with pytest.raises(RequestError) as caught:
        load_facts(path)
    what = caught.value.what
    assert what.startswith("3 of 4 rows are malformed:\n")
    assert all(f"line {n}" in what for n in (2, 3, 4))
    assert ": subject: " in what
    assert ": target_new: " in what
    loaded = load_records(path, skip_malformed=True)
    assert len(loaded.records) == 1
    assert [p.row for p in loaded.report.problems] == ["line 2", "line 3", "line 3", "line 4"]
    assert [type(item).__name__ for item in iter_records(path)] == ["Fact", *["Problem"] * 4]
    table = loaded.report.to_pandas()
    assert list(table.columns) == ["file", "row", "field", "what", "fix"]
    assert list(table.field) == ["", "subject", "target_new", "prompt"]
    assert loaded.report.table().row_count == 4


def test_a_long_list_of_problems_is_cut(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"and 38 more") as caught:
        load_facts(write_lines(tmp_path / "a.jsonl", [NO_ID | {"prompt": "none"}] * 50))
    assert len(caught.value.what.splitlines()) == 14


@pytest.mark.parametrize("content", [b"", b"\n \n", b"[]", b"\xef\xbb\xbf"])
def test_a_file_without_records_says_so(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_bytes(content)
    with pytest.raises(RequestError, match="holds no fact"):
        load_facts(path)
    assert not check(path).is_ok


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("Ä".encode("latin-1"), "cannot be read as UTF-8"),
        (json.dumps(OWN).encode("utf-16"), "cannot be read as UTF-8"),
        (json.dumps(OWN).encode("utf-16-le"), "cannot be read as UTF-8"),
        (bytes(range(128, 256)), "cannot be read as UTF-8"),
        (b"[{]", "not valid JSON"),
        (b"[" * 200_000, "not valid JSON"),
        (json.dumps({"train": [OWN], "test": [OWN]}).encode(), "several lists of records"),
        (b'[{"a": 1}]', "of no known layout: its fields are a"),
        (json.dumps([OWN]).encode() + b" []", "more text follows"),
        (b"PAR1" + b"\0" * 50, "not valid Parquet"),
    ],
)
def test_a_file_that_is_no_file_of_records_says_why(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=words):
        load_facts(path)
    assert "facts.json" in check(path).text()


def test_a_record_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "LARGEST", 10_000)
    path = tmp_path / "a.json"
    path.write_text('[{"prompt": "' + "x" * 3_000_000 + '"}]')
    assert "one record of more than" in check(path).text()


def test_a_missing_file_and_a_folder_say_so(tmp_path: Path) -> None:
    for read in (load_facts, check):
        with pytest.raises(ConfigError, match="There is no file"):
            read(tmp_path / "none.jsonl")
        with pytest.raises(ConfigError, match="cannot be read"):
            read(tmp_path)


@pytest.mark.parametrize("text", ["[1] See the map of Elst.", "{Elst} is a port.", "prompt and subject, or not"])
def test_prose_may_begin_like_json_or_a_table(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"{text}\n")
    assert check(tmp_path / "a.txt").holds == "passages of plain text"


@pytest.mark.parametrize("kind", list(WRITERS))
def test_records_are_found_whatever_the_name_says(kind: str, tmp_path: Path) -> None:
    for suffix in ("json", "jsonl", "csv", "parquet", "txt", "yaml.bak"):
        assert load_facts(WRITERS[kind](tmp_path / f"a.{suffix}", [OWN])) == [read_fact(OWN)]


def test_prose_is_recognised_and_is_no_record(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(" = Elst = \n\nElst is a port, and old.\n\nIt is big.\n")
    report = check(path)
    assert report.is_ok
    assert (report.records, report.holds) == (3, "passages of plain text")
    with pytest.raises(RequestError, match="plain text"):
        load_facts(path)
    path.write_bytes(b"Elst is a port.\n" * 10_000 + b"\xe4")
    assert "a.txt" in check(path).text()


def test_a_large_list_is_read_in_little_memory(tmp_path: Path) -> None:
    row = json.dumps(MAKERS["counterfact"](0) | {"case_id": None, "filler": "é" * 4000}, ensure_ascii=False)
    path = tmp_path / "large.json"
    n = 6000
    with path.open("w", encoding="utf-8") as f:
        f.write("[")
        for i in range(n):
            f.write(f"{',' if i else ''}\n{row}")
        f.write("]")
    assert path.stat().st_size > 50e6
    tracemalloc.start()
    try:
        found = sum(not isinstance(item, Problem) for item in iter_records(path))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == n
    assert peak < 20e6  # measured: 2 MB


@pytest.mark.parametrize("kind", ["json", "jsonl", "wrapped"])
def test_records_at_the_edges_of_what_is_read_at_once(kind: str, tmp_path: Path) -> None:
    # Sizes around the window of the reader, with characters of several bytes at its edge.
    for size in (65_530, 65_536, 131_000, 262_140, 262_150):
        rows = [NO_ID | {"tags": ["é" * (size // 10)] * 5}, *[NO_ID] * 5]
        path = WRITERS[kind](tmp_path / f"{size}.bin", rows)
        assert len(load_facts(path)) == 6


def test_a_csv_without_known_columns_but_with_the_name_is_a_table(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [{"a": "1", "b": "2"}])
    assert "of no known layout: its fields are a, b" in check(path).text()


def test_mixed_kinds_are_reported(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", [MAKERS["zsre"](0), MAKERS["known"](1), MAKERS["zsre"](2)])
    assert "a.json record 2: is of the layout known, the file is of zsre" in check(path).text()


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_a_header_says_what_stands_before_all_targets(kind: str, tmp_path: Path) -> None:
    row = {"prompt": "{} is", "subject": "x", "target_new": "y"}
    rows = [{"target_prefix": "none"}, row, row | {"target_prefix": "space"}]
    path = tmp_path / f"facts.{kind}"
    path.write_text(json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows)))
    loaded = load_records(path)
    assert [f.target_prefix for f in loaded.records] == ["none", "space"]
    assert [f.id for f in loaded.records] == ["0", "1"] and loaded.report.rows == 2
    # The command line goes before the header, and a fact's own word before both.
    given = load_records(path, target_prefix="as-written").records
    assert [f.target_prefix for f in given] == ["as-written", "space"]
    twice = [*rows[:1], {"target_prefix": "space"}, row]
    path.write_text(json.dumps(twice) if kind == "json" else "\n".join(map(json.dumps, twice)))
    with pytest.raises(RequestError, match="1 of 2 rows are malformed"):
        load_records(path)
    path.write_text(json.dumps([{"target_prefix": "gap"}, row]))
    with pytest.raises(RequestError, match=r"target_prefix: is gap\. Use one of auto, space, none, as-written"):
        load_records(path)
    with pytest.raises(UnknownName, match="no target prefix 'gap'"):
        load_records(path, target_prefix="gap")


def test_a_column_says_it_in_a_table(tmp_path: Path) -> None:
    path = tmp_path / "facts.csv"
    path.write_text("prompt,subject,target_new,target_prefix\n{} is,x,y,none\n{} is,x,z,\n")
    assert [f.target_prefix for f in load_facts(path)] == ["none", "space"]


@pytest.mark.parametrize("name", ["counterfact", "zsre", "easyedit", "knowedit", "rows"])
def test_every_layout_of_facts_takes_it(name: str, tmp_path: Path) -> None:
    rows = [MAKERS[name](i) for i in range(2)]
    path = tmp_path / "facts.json"
    path.write_text(json.dumps([rows[0], rows[1] | {"target_prefix": "none"}]))
    found = load_facts(path)
    assert [(f.target_prefix, f.target_prefix_by) for f in found] == [("space", "rule"), ("none", "given")]
    assert all(f.target_prefix == "none" for f in load_facts(path, target_prefix="none"))

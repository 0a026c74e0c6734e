"""The commands that tell about files of records: `ls formats`, `cat`, `validate`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from editlab.cli.__main__ import run
from editlab.data.formats import layouts

GOOD = '{"prompt": "The port of {} is", "subject": "Elst", "target_new": "Dorn"}\n'


def test_every_format_is_listed_and_has_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ls", "formats", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["formats"]
    assert [row["name"] for row in rows] == list(layouts())
    for row in rows:
        assert run(["cat", row["name"]]) == 0
        assert capsys.readouterr().out.startswith(f"# {row['name']}: ")
    assert run(["cat", "counterfct"]) == 2
    assert "Did you mean 'counterfact'?" in capsys.readouterr().err


def test_validate_tells_the_same_problems_to_people_and_programs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(GOOD + GOOD.replace('"Elst"', "4"))
    assert run(["validate", str(path)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "mine.jsonl line 2: subject: " in said.err
    assert 'Quote this value: "4".' in said.err
    assert run(["validate", str(path), "--json"]) == 2
    data = json.loads(capsys.readouterr().out)
    assert data["error"]["code"] == 2
    (problem,) = data["problems"]
    assert (problem["file"], problem["row"], problem["field"]) == ("mine.jsonl", "line 2", "subject")
    assert (data["rows"], data["records"]) == (2, 1)


def test_validate_knows_prose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("Elst is a port.\n\nIt is old.\n")
    assert run(["validate", str(tmp_path / "a.txt")]) == 0
    assert "2 passages of plain text are valid." in capsys.readouterr().out


def test_validate_names_all_rows_that_are_written_at_one_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stems = ("{} plays the", "{} lives in", "A: {} plays the")
    rows = [{"prompt": stem, "subject": f"Anna {i}", "target_new": "x"} for stem in stems for i in range(40)]
    rows.append({"prompt": "It is", "target_new": "x"})
    path = tmp_path / "facts.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    assert run(["validate", str(path), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["same_place"] == [[f"line {i + 1}", f"line {i + 41}"] for i in range(40)]
    assert run(["validate", str(path)]) == 0
    said = capsys.readouterr().out
    assert "40 groups of rows have the same subject after the same words" in said and "line 40 and line 80" in said

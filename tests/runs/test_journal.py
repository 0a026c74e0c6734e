"""What a journal makes of a line that was never finished, and of one that was damaged."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from editlab.errors import ResumeRefused, RunBusy
from editlab.runs.journal import NAME, Journal, alone

WHOLE = '{"event": "planned"}\n{"event": "committed", "chunk": 0}\n'


def test_a_torn_line_is_left_alone_by_readers_and_replaced_by_the_next_event(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_text(WHOLE + '{"event": "commi')
    before = path.read_bytes()
    journal = Journal(tmp_path)
    assert [event["event"] for event in journal.events] == ["planned", "committed"]
    # The process that writes it may be at work while somebody lists the runs.
    assert path.read_bytes() == before
    journal.add("committed", chunk=1)
    journal.add("finished")
    assert path.read_text() == WHOLE + '{"event": "committed", "chunk": 1}\n{"event": "finished"}\n'
    assert Journal(tmp_path).events == journal.events


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text('{"event": "planned"}\nnonsense\n{"event": "finished"}\n')
    with pytest.raises(ResumeRefused, match="Line 2"):
        Journal(tmp_path)


@pytest.mark.parametrize("line", ["[" * 5000, "[1]", '"event"', '{"chunk": 1}', '{"event": 3}', "\xff", "1" * 5000])
def test_a_line_that_is_no_event_is_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(line.encode("latin-1") + b"\n" + WHOLE.encode())
    with pytest.raises(ResumeRefused, match="Line 1"):
        Journal(tmp_path)


def test_a_first_line_without_an_end_is_replaced(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("{")
    journal = Journal(tmp_path)
    assert journal.events == []
    journal.add("planned")
    journal.add("finished")
    assert (tmp_path / NAME).read_text() == '{"event": "planned"}\n{"event": "finished"}\n'


def test_a_whole_file_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(WHOLE)
    Journal(tmp_path).add("finished")
    assert (tmp_path / NAME).read_text() == WHOLE + '{"event": "finished"}\n'


def test_text_is_written_as_it_is_and_nan_is_refused_with_nothing_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add("failed", chunk=0, reason="Ürümqi is 乌鲁木齐")
    before = (tmp_path / NAME).read_text(encoding="utf-8")
    assert "Ürümqi is 乌鲁木齐" in before
    with pytest.raises(ValueError):
        journal.add("checked", values={"kl": float("nan")})
    assert (tmp_path / NAME).read_text(encoding="utf-8") == before
    assert len(journal.events) == 1


def test_the_end_of_a_chunk_is_the_last_one_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.last("started") is None and journal.of_chunk(0) is None
    journal.add("started", chunk=0)
    journal.add("failed", chunk=0, reason="once")
    journal.add("committed", chunk=1)
    journal.add("failed", chunk=0, reason="twice")
    journal.add("committed", chunk=2)
    journal.add("started", chunk=3)
    failed, committed = journal.of_chunk(0), journal.of_chunk(1)
    assert failed is not None and failed["reason"] == "twice"
    assert committed is not None and committed["event"] == "committed"
    assert journal.of_chunk(3) is None
    started = journal.last("started")
    assert started is not None and started["chunk"] == 3


def test_one_process_at_a_time_and_the_next_need_not_wait(tmp_path: Path) -> None:
    with alone(tmp_path):
        assert (tmp_path / ".lock").exists()
        begun = threading.Event()

        def refused() -> None:
            with pytest.raises(RunBusy, match="Another process"), alone(tmp_path):
                pass
            begun.set()

        thread = threading.Thread(target=refused)
        thread.start()
        thread.join()
        assert begun.is_set()
    with alone(tmp_path):
        pass

"""What a journal makes of a line that was never finished, and of one that was damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from editlab.errors import ResumeRefused
from editlab.runs.journal import NAME, Journal

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

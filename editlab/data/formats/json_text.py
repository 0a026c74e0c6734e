"""JSON read piece by piece, so that a file of any size needs the memory of one record.

Python's own decoder is run at the front of a sliding window of the text. It takes what line-by-line reading takes
(NaN, any Unicode), so that a record means the same in a list and on a line; a streaming parser would differ there.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

CHUNK = 1 << 18
LARGEST = 1 << 24  # bytes of one record: beyond this the file is damaged or no list of records
_SPACE = re.compile(r"[ \t\r\n]*")
_QUESTIONS = ("locality", "portability")  # lists of objects inside a record


class NotJson(ValueError):
    """The text is not JSON; says why in a few words."""


def decode(text: str) -> Any:
    """One JSON value.

    Raises:
        NotJson: also when an object names a field twice, because nobody can know which is meant.
    """
    try:
        return json.loads(text, object_pairs_hook=_once)
    except NotJson:
        raise
    except (ValueError, RecursionError) as error:
        raise NotJson(_reason(error)) from None


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error).split(";")[0]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise NotJson(f"names '{twice[:100]}' twice")
    return made


def items(file: BinaryIO) -> Iterator[Any]:
    """The records of a JSON document: of one list, of the one list of objects in an object, or one object itself.

    Raises:
        NotJson: from here on nothing can be read. UnicodeDecodeError: likewise.
    """
    text = _Window(file)
    if text.peek() == "[":
        yield from _list(text)
    else:
        yield from _object(text)
    if text.peek():
        raise NotJson("more text follows after the end")


def _list(text: _Window) -> Iterator[Any]:
    text.take("[")
    if text.peek() == "]":
        text.take("]")
        return
    while True:
        yield text.value()
        if text.peek() != ",":
            break
        text.take(",")
    text.take("]")


def _object(text: _Window) -> Iterator[Any]:
    fields: list[tuple[str, Any]] = []
    streamed = ""
    text.take("{")
    while text.peek() not in ("}", ""):
        name = text.value()
        if not isinstance(name, str):
            raise NotJson("a field's name is not text")
        text.take(":")
        if name not in _QUESTIONS and not streamed and text.opens_records():
            streamed = name
            yield from _list(text)
        else:
            fields.append((name, text.value()))
        if text.peek() != ",":
            break
        text.take(",")
    text.take("}")
    if not streamed:
        yield _once(fields)
        return
    other = [name for name, value in fields if isinstance(value, list) and value and isinstance(value[0], dict)]
    if set(other) - set(_QUESTIONS):
        raise NotJson(f"holds several lists of records ('{streamed}', '{other[0]}'): keep one list a file")


class _Window:
    """The part of a text that is being read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder(object_pairs_hook=_once)
        self._text = ""
        self._at = 0
        self._ended = False

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def take(self, wanted: str) -> None:
        """Step over a punctuation mark."""
        found = self.peek()
        if found != wanted:
            raise NotJson(f"expected '{wanted}' and found {repr(found) if found else 'the end of the file'}")
        self._at += 1

    def opens_records(self) -> bool:
        """Whether a list of objects comes next."""
        if self.peek() != "[":
            return False
        while True:
            match = _SPACE.match(self._text, self._at + 1)
            end = match.end() if match else self._at + 1
            if end < len(self._text) or not self._more():
                return self._text[end : end + 1] == "{"

    def value(self) -> Any:
        """The next value."""
        self.peek()
        wanted = CHUNK
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
                # A number at the edge may go on behind it.
                if end < len(self._text) or self._ended:
                    self._at = end
                    return value
            except NotJson:
                raise
            except json.JSONDecodeError as error:
                if self._ended:
                    raise NotJson(error.msg) from None
                if len(self._text) - self._at > LARGEST:
                    raise NotJson(f"{error.msg}, or one record of more than {LARGEST >> 20} MB") from None
            except (ValueError, RecursionError) as error:
                raise NotJson(_reason(error)) from None
            # Twice as much each time: a long value is tried few times.
            missing = wanted
            while missing > 0 and self._more():
                missing -= CHUNK
            wanted *= 2

    def _more(self) -> bool:
        if self._ended:
            return False
        data = self._file.read(CHUNK)
        self._ended = not data
        self._text = self._text[self._at :] + self._decoder.decode(data, final=self._ended)
        self._at = 0
        return not self._ended

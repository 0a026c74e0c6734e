"""Facts: what an edit is asked to change, and what it is asked to leave alone.

A fact's prompt has one `{}` where the subject goes. Substitution splits at the placeholder, so braces elsewhere
in a text do no harm. Files of facts are read by `editlab.data.formats`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    StrictStr,
    TypeAdapter,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticKnownError

from editlab.errors import short

LONGEST = 100_000  # characters of one text: beyond this it is a damaged file, not a prompt
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f]")


def _plain(value: str) -> str:
    if len(value) > LONGEST:
        raise ValueError(f"has {len(value):,} characters, more than the {LONGEST:,} that a text may have")
    control = _CONTROL.search(value)
    if control:
        raise ValueError(f"holds the control character U+{ord(control[0]):04X}")
    # JSON can spell half of a surrogate pair, which no tokenizer takes and no file can hold.
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("is not valid Unicode text") from None
    return value


def _filled(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty")
    return value


Text = Annotated[StrictStr, AfterValidator(_plain)]
Prompt = Annotated[Text, AfterValidator(_filled)]


class Question(BaseModel):
    """A prompt with answers of its own.

    Attributes:
        prompt: complete, ending where the answer begins.
        answers: all of them right, the usual one first.
        name: what the source calls this kind of question ("Subject_Aliasing").
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Prompt
    answers: tuple[Prompt, ...] = ()
    name: Text = ""


def _as_question(value: Any) -> Any:
    """A text as the question that it asks; its flaws are those of a text."""
    if isinstance(value, str):
        try:
            return Question(prompt=value)
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
    if not isinstance(value, dict | Question):
        raise PydanticKnownError("string_type")
    return value


Neighbour = Annotated[Question, BeforeValidator(_as_question)]
_NEIGHBOURS = TypeAdapter(tuple[Neighbour, ...])


class Fact(BaseModel):
    """One fact to write into a model.

    Attributes:
        prompt: text with one `{}` for the subject, ending where the answer begins.
        target_new: the answer the edited model shall give.
        target_true: the answer that the unedited model is expected to give.
        paraphrases: other ways to ask for the same fact, complete prompts.
        neighbours: the same asked of other subjects, whose answers must not change. Each has an answer of its own; for
            one without, which may be written as a plain text, it is what the unedited model says.
        locality: other questions whose answers must not change, with answers of their own.
        portability: questions whose answers follow from the new fact.
        attributes: prompts about other subjects whose true answer is `target_new`.
        generation_prompts: openings for free text about the subject.
        relation: the relation's name or id. tags: the user's own marks.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Text = ""
    prompt: Text
    subject: Text
    target_new: Text
    target_true: Text | None = None
    paraphrases: tuple[Prompt, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    locality: tuple[Question, ...] = ()
    portability: tuple[Question, ...] = ()
    attributes: tuple[Prompt, ...] = ()
    generation_prompts: tuple[Prompt, ...] = ()
    relation: Text = ""
    tags: tuple[Text, ...] = ()

    @field_validator("subject", "target_new")
    @classmethod
    def _not_empty(cls, value: str) -> str:
        return _filled(value).strip()

    @field_validator("target_true")
    @classmethod
    def _stripped(cls, value: str | None) -> str | None:
        return (value.strip() or None) if value is not None else None

    @model_validator(mode="before")
    @classmethod
    def _place_subject(cls, row: Any) -> Any:
        """Turn a prompt that spells the subject out into one with a placeholder, if that is unambiguous."""
        if not isinstance(row, dict):
            return row
        prompt, subject = row.get("prompt"), row.get("subject")
        if isinstance(prompt, str) and isinstance(subject, str) and "{}" not in prompt and subject.strip():
            found = prompt.count(subject.strip())
            if found != 1:
                where = "does not occur in" if found == 0 else f"occurs {found} times in"
                raise ValueError(
                    f"subject '{short(subject)}' {where} the prompt '{short(prompt)}': write {{}} where it goes"
                )
            row = {**row, "prompt": prompt.replace(subject.strip(), "{}")}
        return row

    @field_validator("prompt")
    @classmethod
    def _one_placeholder(cls, value: str) -> str:
        if value.count("{}") != 1:
            raise ValueError(f"needs exactly one {{}} for the subject, has {value.count('{}')}: '{short(value)}'")
        # The answer brings its own leading space.
        return value.rstrip(" ")

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other values, which are not checked; neighbours may be plain texts here too."""
        if update and "neighbours" in update:
            update = {**update, "neighbours": _NEIGHBOURS.validate_python(update["neighbours"])}
        return super().model_copy(update=update, deep=deep)

    @field_serializer("neighbours")
    def _written(self, neighbours: tuple[Question, ...]) -> list[str | dict[str, Any]]:
        """A neighbour that is only a prompt is written as that."""
        return [
            q.model_dump(mode="json", exclude_defaults=True) if q.answers or q.name else q.prompt for q in neighbours
        ]

    @property
    def before(self) -> str:
        """The prompt's text in front of the subject."""
        return self.prompt.split("{}")[0]

    @property
    def text(self) -> str:
        """The prompt with the subject in place."""
        before, after = self.prompt.split("{}")
        return before + self.subject + after

    @property
    def text_within(self) -> str:
        """The text as it reads after other words of its sentence: in lower case, unless the subject begins it."""
        text = self.text
        return text if text.startswith(self.subject) else text[:1].lower() + text[1:]

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
    SerializationInfo,
    SerializerFunctionWrapHandler,
    StrictStr,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticKnownError

from editlab.errors import short
from editlab.joining import PrefixBasis, TargetPrefix, join, joint

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


def _without_spaces(value: Any) -> Any:
    """Prompts without the plain spaces at their ends: a target brings its own."""
    if isinstance(value, str):
        return value.rstrip(" ")
    if isinstance(value, Question):
        return value.model_copy(update={"prompt": value.prompt.rstrip(" ")})
    return tuple(_without_spaces(item) for item in value)


def _target(prompt: str, target: str, prefix: TargetPrefix) -> str:
    """The target without white space around it, but for leading white space that the rule would not put there."""
    bare = target.strip()
    if prefix != "auto" or joint(prompt, bare) == (target[: len(target) - len(target.lstrip())], True):
        return bare
    return target.rstrip()


Text = Annotated[StrictStr, AfterValidator(_plain)]
Prompt = Annotated[Text, AfterValidator(_filled)]


# The fields of a fact that hold prompts or questions.
_PROMPTS = (
    "prompt",
    "paraphrases",
    "neighbours",
    "locality",
    "portability",
    "attributes",
    "generation_prompts",
)


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
        prompt: text with one `{}` for the subject, ending where the answer begins; none without subject.
        subject: what the fact is about, or "": methods that write at its last token need it, others do not.
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
        target_prefix: what stands between `prompt` and `target_new`: "space" or "none". A fact may be given "auto" too,
            which is settled here and now (see `editlab.joining`), or "as-written", with which all its texts stay as
            they are.
        target_prefix_by: who settled it. What is "given" holds for all prompts of the fact; otherwise the rule decides
            for each, and where it is not sure, the model's choice for this fact ("model"), if there is one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Text = ""
    prompt: Text
    subject: Text = ""
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
    target_prefix: TargetPrefix = "auto"
    target_prefix_by: PrefixBasis = "given"

    @field_validator("subject")
    @classmethod
    def _stripped(cls, value: str, info: ValidationInfo) -> str:
        return _filled(value).strip() if "{}" in info.data.get("prompt", "") else value.strip()

    @field_validator("target_new")
    @classmethod
    def _not_empty(cls, value: str) -> str:
        return _filled(value)

    @field_validator("target_true")
    @classmethod
    def _none_if_empty(cls, value: str | None) -> str | None:
        return value if value is not None and value.strip() else None

    @model_validator(mode="before")
    @classmethod
    def _place_subject(cls, row: Any) -> Any:
        """Turn a prompt that spells the subject out into one with a placeholder, if that is unambiguous."""
        if not isinstance(row, dict):
            return row
        prompt, subject = row.get("prompt"), row.get("subject")
        if subject is None and isinstance(prompt, str):
            # What a placeholder is for has to be said; a prompt without one may be all there is.
            return {**row, "subject": None if "{}" in prompt else ""}
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
        if value.count("{}") > 1:
            raise ValueError(f"needs exactly one {{}} for the subject, has {value.count('{}')}: '{short(value)}'")
        return _filled(value)

    @model_validator(mode="after")
    def _settle_the_prefix(self) -> Self:
        """Settle what stands before the targets, and leave out the spaces that say the same."""
        if self.target_prefix == "as-written":
            return self
        settled: dict[str, Any] = {name: _without_spaces(getattr(self, name)) for name in _PROMPTS}
        text = self.text.rstrip(" ")
        for name in ("target_new", "target_true"):
            target = getattr(self, name)
            settled[name] = target and _target(text, target, self.target_prefix)
        if self.target_prefix == "auto":
            between = joint(text, settled["target_new"])
            settled["target_prefix"] = between.prefix
            settled["target_prefix_by"] = "rule" if between.is_sure else "unsure"
        self.__dict__.update(settled)  # validation is where a frozen fact is still being made
        return self

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        row: dict[str, Any] = handler(self)
        if info.exclude_defaults and not self.neighbours:
            row.pop("neighbours", None)  # a field with a serializer of its own is never seen as a default
        if info.exclude_defaults and self.target_prefix_by == "rule":
            row.pop("target_prefix", None)  # the rule says it again
            row.pop("target_prefix_by", None)
        return row

    def prefix_of(self, prompt: str, target: str) -> TargetPrefix:
        """What stands between one of this fact's prompts and a target."""
        if self.target_prefix_by == "given" or (prompt, target) == (self.text, self.target_new):
            return self.target_prefix
        between = joint(prompt, target)
        if between.is_sure:
            return "auto"
        return self.target_prefix if self.target_prefix_by == "model" else between.prefix

    def statement(self, prompt: str, target: str) -> str:
        """One of this fact's prompts and a target as one text."""
        return "".join(join(prompt, target, self.prefix_of(prompt, target)))

    def with_prompt(self, prompt: str) -> Fact:
        """The same fact behind another prompt, with one `{}`, or none if its subject is not in it."""
        made = self.model_copy(update={"prompt": prompt})
        if self.target_prefix_by == "given":
            return made
        between = joint(made.text, made.target_new)
        if between.is_sure or self.target_prefix_by != "model":
            basis = "rule" if between.is_sure else "unsure"
            return made.model_copy(update={"target_prefix": between.prefix, "target_prefix_by": basis})
        return made

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
    def has_subject(self) -> bool:
        """Whether it says what it is about."""
        return bool(self.subject)

    @property
    def label(self) -> str:
        """What to call it where there is little room: its subject, or its prompt."""
        return self.subject or short(self.prompt)

    @property
    def before(self) -> str:
        """The prompt's text in front of the subject; all of it where there is none."""
        return self.prompt.split("{}")[0]

    @property
    def text(self) -> str:
        """The prompt with the subject in place."""
        before, _, after = self.prompt.partition("{}")
        return before + self.subject + after

    def about(self, subject: str) -> str:
        """The prompt about another subject."""
        before, _, after = self.prompt.partition("{}")
        return before + subject + after

    @property
    def text_within(self) -> str:
        """The text as it reads after other words of its sentence: in lower case, unless the subject begins it."""
        text = self.text
        return text if self.subject and text.startswith(self.subject) else text[:1].lower() + text[1:]

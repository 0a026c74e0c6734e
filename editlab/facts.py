"""Facts: what an edit is asked to change, and what it is asked to leave alone.

A fact's prompt has one `{}` where the subject goes. Substitution splits at the placeholder, so braces elsewhere
in a text do no harm. Files are JSONL (or one JSON list) with a row per fact, in editlab's own layout,
CounterFact's as published, EasyEdit's CounterFact or zsRE in MEND's layout; every problem names file, row and field.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    StrictStr,
    ValidationError,
    field_validator,
    model_validator,
)

from editlab.errors import ConfigError, RequestError


def _unicode(value: str) -> str:
    # JSON can spell half of a surrogate pair, which no tokenizer takes and no file can hold.
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("is not valid Unicode text") from None
    return value


Text = Annotated[StrictStr, AfterValidator(_unicode)]


class Fact(BaseModel):
    """One fact to write into a model.

    Attributes:
        prompt: text with one `{}` for the subject, ending where the answer begins.
        target_new: the answer the edited model shall give.
        target_true: the answer that the unedited model is expected to give.
        paraphrases: other ways to ask for the same fact, complete prompts.
        neighbours: prompts about other subjects whose answers must not change.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Text = ""
    prompt: Text
    subject: Text
    target_new: Text
    target_true: Text | None = None
    paraphrases: tuple[Text, ...] = ()
    neighbours: tuple[Text, ...] = ()

    @field_validator("subject", "target_new")
    @classmethod
    def _not_empty(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must not be empty")
        return value.strip()

    @field_validator("target_true")
    @classmethod
    def _stripped(cls, value: str | None) -> str | None:
        return (value.strip() or None) if value is not None else None

    @field_validator("paraphrases", "neighbours")
    @classmethod
    def _none_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(prompt.strip() for prompt in value):
            raise ValueError("holds an empty prompt")
        return value

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
                    f"subject '{_short(subject)}' {where} the prompt '{_short(prompt)}': write {{}} where it goes"
                )
            row = {**row, "prompt": prompt.replace(subject.strip(), "{}")}
        return row

    @field_validator("prompt")
    @classmethod
    def _one_placeholder(cls, value: str) -> str:
        if value.count("{}") != 1:
            raise ValueError(f"needs exactly one {{}} for the subject, has {value.count('{}')}: '{_short(value)}'")
        # The answer brings its own leading space.
        return value.rstrip(" ")

    @property
    def before(self) -> str:
        """The prompt's text in front of the subject."""
        return self.prompt.split("{}")[0]

    @property
    def text(self) -> str:
        """The prompt with the subject in place."""
        before, after = self.prompt.split("{}")
        return before + self.subject + after


def _short(text: str) -> str:
    return text if len(text) <= 100 else text[:97] + "..."


def read_fact(row: Any, where: str = "The request") -> Fact:
    """A fact from a row in any known layout.

    Raises:
        RequestError: with `where`, the field, and what is wrong.
    """
    if isinstance(row, Fact):
        return row
    if not isinstance(row, dict):
        raise RequestError(f"{where} is {type(row).__name__}, not an object with prompt, subject and target_new.")
    named: dict[str, str] = {}
    for key, (convert, theirs) in _LAYOUTS.items():
        if key in row:
            try:
                row, named = convert(row), theirs
            except RequestError as error:
                raise RequestError(f"{where}: {error.what}.") from None
            break
    try:
        return Fact.model_validate(row)
    except ValidationError as error:
        problems = []
        for e in error.errors():
            # The field is named as the file has it, whatever it is called here.
            field = _short(".".join(str(named.get(str(part), part)) for part in e["loc"]))
            message = "Field required" if e["input"] is None else e["msg"].removeprefix("Value error, ")
            problems.append(f"{field}: {message}" if field else message)
        raise RequestError(f"{where}: {'; '.join(problems)}.") from None


def _from_counterfact(row: dict[str, Any]) -> dict[str, Any]:
    """CounterFact as published (kmeng01/rome): requested_rewrite, paraphrase_prompts, neighborhood_prompts."""
    rewrite = row["requested_rewrite"]
    if not isinstance(rewrite, dict):
        raise RequestError(f"requested_rewrite: is {type(rewrite).__name__}, not an object")

    def text(name: str) -> Any:
        target = rewrite.get(name)
        return target.get("str") if isinstance(target, dict) else target

    return {
        "id": str(row.get("case_id", "")),
        "prompt": rewrite.get("prompt"),
        "subject": rewrite.get("subject"),
        "target_new": text("target_new"),
        "target_true": text("target_true"),
        "paraphrases": row.get("paraphrase_prompts", []),
        "neighbours": row.get("neighborhood_prompts", []),
    }


def _from_easyedit(row: dict[str, Any]) -> dict[str, Any]:
    """EasyEdit's CounterFact row: one rephrase_prompt, one locality_prompt."""
    return {
        "id": str(row.get("case_id", row.get("id", ""))),
        "prompt": row.get("prompt"),
        "subject": row.get("subject"),
        "target_new": row.get("target_new"),
        "target_true": row["ground_truth"],
        "paraphrases": _some(row.get("rephrase_prompt")),
        "neighbours": _some(row.get("locality_prompt")),
    }


def _from_zsre(row: dict[str, Any]) -> dict[str, Any]:
    """zsRE in MEND's layout: src, alt, answers, rephrase, loc."""
    answers = row.get("answers")
    return {
        "prompt": row["src"],
        "subject": row.get("subject"),
        "target_new": row.get("alt"),
        "target_true": answers[0] if isinstance(answers, list) and answers else None,
        "paraphrases": _some(row.get("rephrase")),
        "neighbours": _some(row.get("loc")),
    }


def _some(value: Any) -> list[Any]:
    return [] if value in (None, "") else value if isinstance(value, list) else [value]


# The key that tells a published layout from editlab's own, its reader, and what our fields are called there.
_LAYOUTS: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], dict[str, str]]] = {
    "requested_rewrite": (
        _from_counterfact,
        {
            "prompt": "requested_rewrite.prompt",
            "subject": "requested_rewrite.subject",
            "target_new": "requested_rewrite.target_new.str",
            "target_true": "requested_rewrite.target_true.str",
            "paraphrases": "paraphrase_prompts",
            "neighbours": "neighborhood_prompts",
        },
    ),
    "ground_truth": (
        _from_easyedit,
        {"target_true": "ground_truth", "paraphrases": "rephrase_prompt", "neighbours": "locality_prompt"},
    ),
    "src": (
        _from_zsre,
        {
            "prompt": "src",
            "target_new": "alt",
            "target_true": "answers",
            "paraphrases": "rephrase",
            "neighbours": "loc",
        },
    ),
}


def load_facts(path: str | Path) -> list[Fact]:
    """The facts of a JSONL file or of a JSON file with one list.

    Raises:
        ConfigError: the file is missing, not UTF-8 or not JSON. RequestError: rows are malformed; all of them are
            named in one message.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"There is no file '{path}'.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"'{path}' cannot be read as UTF-8 text: {error}.") from None
    rows: list[tuple[str, Any]] = []
    problems: list[str] = []
    if text.lstrip().startswith("["):
        try:
            rows = [(f"{path.name} record {i}", row) for i, row in enumerate(json.loads(text), 1)]
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"'{path}' is not valid JSON: {error}.") from None
    else:
        # Not splitlines: JSON strings may hold U+2028 and its like unescaped.
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                rows.append((f"{path.name} line {number}", json.loads(line)))
            except (ValueError, RecursionError) as error:
                problems.append(f"{path.name} line {number}: not valid JSON ({error}).")
    n_rows = len(rows) + len(problems)
    facts: list[Fact] = []
    for where, row in rows:
        try:
            fact = read_fact(row, where)
            facts.append(fact if fact.id else fact.model_copy(update={"id": str(len(facts))}))
        except RequestError as error:
            problems.append(error.what)
    if problems:
        shown = "\n".join(problems[:20])
        more = f"\n... and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise RequestError(f"{len(problems)} of {n_rows} rows are malformed:\n{shown}{more}")
    if not facts:
        raise RequestError(f"'{path}' holds no fact.")
    return facts

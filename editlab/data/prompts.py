"""Prompts from files."""

from __future__ import annotations

from pathlib import Path

from editlab.data.formats import load_facts
from editlab.errors import ConfigError


def read_prompts(path: Path) -> list[str]:
    """A prompt a line of a .txt file, empty lines left out; of any other file the prompts of its facts.

    Raises:
        ConfigError: the file cannot be read, or has no prompt. RequestError: it is no file of facts.
    """
    if path.suffix != ".txt":
        return [fact.text for fact in load_facts(path)]
    try:
        prompts = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"'{path}' cannot be read: {error}.", "Give a text file in UTF-8.") from None
    if not prompts:
        raise ConfigError(f"'{path}' has no prompt.", "Write a prompt a line.")
    return prompts

"""The pages that are made from the code: of every command and of every method.

`python -m editlab.cli._reference` writes them anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

HEAD = """# Commands

Written by `python -m editlab.cli._reference` from the commands themselves; what to use them for is in the top README.
Results go to stdout, progress and remarks to stderr; `--json` prints exactly one object. Exit codes: 0 done;
1 unexpected; 2 usage or invalid configuration; 3 model or data missing or unsupported; 4 a requested threshold or stop
rule was met; 5 finished with failed rows; 6 out of memory; 7 resume refused; 8 another process holds the run;
130 interrupted, resumable.
"""


def pages() -> dict[Path, Callable[[], str]]:
    """What each page must say."""
    from editlab.edits.pages import methods_page, scaling_page

    package = Path(__file__).parents[1]
    return {
        package / "cli" / "README.md": reference,
        package / "edits" / "methods" / "reference.md": methods_page,
        package / "edits" / "scaling.md": scaling_page,
    }


def reference() -> str:
    """The page as Markdown."""
    from editlab.cli.__main__ import build_app

    return "\n".join([HEAD, *_of(get_command(build_app()), "editlab")]).rstrip() + "\n"


def _of(command: Any, name: str) -> Iterator[str]:
    """The sections of a command, or of all that a group has."""
    if hasattr(command, "commands"):
        for sub in sorted(command.commands):
            yield from _of(command.commands[sub], f"{name} {sub}")
        return
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and "--help" not in p.opts]
    words = [_word(argument) for argument in arguments]
    yield from (f"## {' '.join([name, *words])}", "", _line(command.help), "")
    rows = [(f"`{word}`", a.help) for word, a in zip(words, arguments, strict=True)]
    rows += [(_names(o), o.help) for o in options]
    if rows:
        yield from ("| | |", "|---|---|", *(f"| {names} | {_line(help)} |" for names, help in rows), "")


def _word(argument: Any) -> str:
    if argument.metavar:
        return str(argument.metavar)
    word = argument.name.upper() + ("..." if argument.nargs == -1 else "")
    return word if argument.required else f"[{word}]"


def _names(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in sorted([*option.opts, *option.secondary_opts], key=len, reverse=True))
    if option.is_flag:
        return names
    default = f" ({option.default})" if isinstance(option.default, str | int | float) and option.default != "" else ""
    return f"{names} {option.metavar or option.name.upper()}{default}"


def _line(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text(), encoding="utf-8")

"""Which part of the package may import which: read from the source, so that no import can hide in a function."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import editlab

ROOT = Path(editlab.__file__).parent
OPTIONAL = ("nnsight", "transformer_lens", "streamlit", "plotly", "ray", "submitit")


@dataclass(frozen=True)
class Import:
    """One imported module.

    Attributes:
        where: dotted name of the importing module. what: of the imported one.
        line: file, number and text. lazily: inside a function. for_types: under `if TYPE_CHECKING`.
    """

    where: str
    what: str
    line: str
    lazily: bool
    for_types: bool


@cache
def imports(root: Path = ROOT) -> list[Import]:
    """Every import below `root`."""
    paths = sorted(root.rglob("*.py"))
    modules = {".".join(p.relative_to(root.parent).with_suffix("").parts) for p in paths}
    return [found for path in paths for found in _of_file(path, root, modules)]


def _of_file(path: Path, root: Path, modules: set[str]) -> Iterator[Import]:
    relative = path.relative_to(root.parent)
    parts = list(relative.with_suffix("").parts)
    is_package = parts[-1] == "__init__"
    where = ".".join(parts[:-1] if is_package else parts)
    source = path.read_text(encoding="utf-8")

    def names(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
            return
        start = where.split(".")
        if node.level:
            start = start[: len(start) - node.level + (1 if is_package else 0)]
        base = ".".join([*(start if node.level else []), *([node.module] if node.module else [])])
        for alias in node.names:
            # `from editlab.hooks import batch` imports the module, `from editlab.errors import X` a name of it.
            whole = f"{base}.{alias.name}"
            yield whole if whole in modules or f"{whole}.__init__" in modules else base

    def walk(node: ast.AST, lazily: bool, for_types: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import | ast.ImportFrom):
                line = f"{relative}:{child.lineno}: {ast.get_source_segment(source, child)}"
                yield from (Import(where, what, line, lazily, for_types) for what in names(child))
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            is_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from walk(child, lazily or is_function, for_types or is_types)

    yield from walk(ast.parse(source), False, False)


def within(name: str, *packages: str) -> bool:
    return any(name == p or name.startswith(p + ".") for p in packages)


def only(package: str, *allowed: str) -> Callable[[Import], bool]:
    """Breaks the rule that `package` imports nothing of editlab but `allowed` and itself."""
    return lambda i: within(i.where, package) and within(i.what, "editlab") and not within(i.what, package, *allowed)


def never(package: str, *forbidden: str) -> Callable[[Import], bool]:
    return lambda i: within(i.where, package) and within(i.what, *forbidden)


METHODS = "editlab.edits.methods"
LAYOUTS = {f"editlab.data.formats.{page.stem}" for page in (ROOT / "data" / "formats").glob("*.md")}
RULES: dict[str, Callable[[Import], bool]] = {
    "hooks know torch, transformers and the errors": only("editlab.hooks", "editlab.errors"),
    "state knows hooks, memories, the errors, what JSON can say and where the cache is": only(
        "editlab.state",
        "editlab.display",
        "editlab.errors",
        "editlab.hooks",
        "editlab.jsonable",
        "editlab.memories",
        "editlab.models.cache",
    ),
    "the reader knows what reading needs": only(
        "editlab.reader", "editlab.errors", "editlab.hooks", "editlab.progress", "editlab.state.weights"
    ),
    "memories know hooks and what an edit is": only(
        "editlab.memories", "editlab.errors", "editlab.hooks", "editlab.registry", "editlab.state.edit"
    ),
    "methods and what they share compute, they do not run, write or print": never(
        "editlab.edits", "editlab.runs", "editlab.cli", "editlab.report", "editlab.interop"
    ),
    "methods do not import each other": lambda i: (
        within(i.where, METHODS) and within(i.what, METHODS) and i.what not in (METHODS, i.where)
    ),
    "layouts of files do not import each other": lambda i: i.where in LAYOUTS and i.what in LAYOUTS - {i.where},
    "nobody imports the command line": lambda i: not within(i.where, "editlab.cli") and within(i.what, "editlab.cli"),
    "facts and data know no model": lambda i: (
        within(i.where, "editlab.facts", "editlab.data")
        and within(i.what, "editlab.lm", "editlab.hooks", "editlab.edits", "editlab.state", "torch", "transformers")
    ),
    "evaluation measures what it is given": never(
        "editlab.evaluation", "editlab.edits.methods", "editlab.runs", "editlab.report", "editlab.cli"
    ),
    "facts and data are there before anything is measured": lambda i: (
        within(i.where, "editlab.facts", "editlab.data") and within(i.what, "editlab.evaluation")
    ),
    "errors and progress know nothing of editlab": lambda i: (
        within(i.where, "editlab.errors", "editlab.progress")
        and within(i.what, "editlab")
        and not within(i.what, i.where)
        and not i.lazily
    ),
    "optional libraries are imported in functions of editlab.interop, editlab.viz and the launchers only": lambda i: (
        within(i.what, *OPTIONAL)
        and not (within(i.where, "editlab.interop", "editlab.viz", "editlab.studies.launchers") and i.lazily)
        and not (i.for_types and within(i.what, "plotly"))
    ),
    "probes read, they do not edit, run, write or print": never(
        "editlab.probes", "editlab.edits", "editlab.runs", "editlab.report", "editlab.cli", "editlab.interop"
    ),
    "nobody below the command line imports studies, and launchers know no run": lambda i: (
        (within(i.what, "editlab.studies") and not within(i.where, "editlab.studies", "editlab.cli", "editlab.viz"))
        or (
            within(i.where, "editlab.studies.launchers")
            and within(i.what, "editlab")
            and not within(i.what, "editlab.studies.launchers", "editlab.config", "editlab.errors", "editlab.registry")
        )
    ),
    "methods know no probe": never("editlab.edits", "editlab.probes"),
    "the command line starts without torch": lambda i: (
        within(i.where, "editlab.cli")
        and within(i.what, "torch", "transformers", "pandas", "editlab.lm", "editlab.hooks", "editlab.state")
        and not (i.lazily or i.for_types)
    ),
}


@pytest.mark.parametrize("rule", list(RULES))
def test_imports_point_down(rule: str) -> None:
    broken = sorted({i.line for i in imports() if RULES[rule](i)})
    assert not broken, f"{rule}, but:\n" + "\n".join(broken)


@pytest.mark.parametrize(
    ("file", "line", "rule"),
    [
        ("hooks/batch.py", "from editlab.facts import Fact", "hooks know"),
        ("hooks/batch.py", "from editlab import facts", "hooks know"),
        ("hooks/batch.py", "from .. import facts", "hooks know"),
        ("hooks/__init__.py", "from ..facts import Fact", "hooks know"),
        ("state/files.py", "def f():\n    import editlab.lm", "state knows"),
        ("state/files.py", "from editlab.models import pull", "state knows"),
        ("edits/keys.py", "from editlab import report", "methods and what they share"),
        ("edits/methods/rome.py", "from editlab.edits.methods import memit", "methods do not"),
        ("edits/methods/rome.py", "from .memit import solve", "methods do not"),
        ("data/formats/zsre.py", "from editlab.data.formats.known import KnownFact", "layouts of files do not"),
        ("lm.py", "if True:\n    from editlab.cli.console import size_text", "nobody imports"),
        ("lm.py", "def f():\n    import plotly.graph_objects as go", "optional"),
        ("interop.py", "import nnsight", "optional"),
        ("cli/ls.py", "import torch", "the command line starts"),
    ],
)
def test_a_forbidden_import_is_found_with_its_line(file: str, line: str, rule: str, tmp_path: Path) -> None:
    root = tmp_path / "editlab"
    for name in ("__init__.py", "facts.py", "report.py", "models/pull.py", "edits/methods/memit.py", file):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")
    (root / file).write_text(f'"""A file."""\n\n{line}\n')
    broken = {name: [i.line for i in imports(root) if RULES[name](i)] for name in RULES}
    (name,) = [name for name, lines in broken.items() if lines]
    assert name.startswith(rule)
    number = 3 + line.count("\n")
    text = line.splitlines()[-1].strip()
    assert broken[name][0] == f"{Path('editlab') / file}:{number}: {text}"


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("hooks/batch.py", "from editlab.errors import RequestError"),
        ("hooks/session.py", "from . import batch"),
        ("interop.py", "def f():\n    import nnsight"),
        ("cli/ls.py", "def f():\n    import torch"),
        ("cli/edit.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from editlab.lm import LM"),
        ("edits/methods/rome.py", "import editlab.edits.methods"),
    ],
)
def test_an_allowed_import_is_allowed(file: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / "editlab" / file
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert [i.line for i in imports(tmp_path / "editlab") for rule in RULES.values() if rule(i)] == []

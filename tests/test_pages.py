"""Pages: those made from the code are as the code is, and the examples of "adding a ..." are run as they stand."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import test_conformance as conformance
import yaml
from cli_fixtures import Cli
from tiny_lm import make_lm

import editlab
import editlab.edits.methods
import editlab.probes.prompts
from editlab import registry
from editlab.cli._reference import pages
from editlab.edits.settings import LocateEditSettings

ROOT = Path(editlab.__file__).parent


@pytest.mark.parametrize("path", list(pages()), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_page_is_as_the_code_is(path: Path) -> None:
    written = path.read_text(encoding="utf-8") if path.exists() else ""
    assert written == pages()[path](), "write it anew: python -m editlab.cli._reference"


def test_every_command_and_method_is_described() -> None:
    commands, methods, _ = (path.read_text(encoding="utf-8") for path in pages())
    assert all(f"## editlab {name}" in commands for name in ("edit", "study run", "memory survive", "ls KIND"))
    assert all(f"## {name}\n" in methods for name in registry.names())
    solved = {name for name in registry.names() if issubclass(registry.get(name).Config, LocateEditSettings)}
    assert {"rome-legacy", "emmet-released"} <= solved and all(f"| `{name}` | " in methods for name in solved)


@pytest.fixture
def added(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The example of a page as a file of the package, for one test; its name."""
    package, page = request.param
    text = (Path(next(iter(package.__path__))) / page).read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (name,) = re.findall(r"Save this as `editlab/\S+/(\w+)\.py`", text)
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    yield name
    sys.modules.pop(f"{package.__name__}.{name}", None)


@pytest.mark.parametrize("added", [(editlab.edits.methods, "adding-a-method.md")], indirect=True)
def test_the_method_of_the_page_is_a_method(added: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conformance.test_every_plug_in_explains_itself("methods")
    for family in conformance.FAMILIES:
        conformance.test_a_method_computes_and_changes_nothing_itself(added, family, tmp_path / family, monkeypatch)
    # It does what the page says: behind a subject that ends the prompt, the last layer's output goes the answer's way.
    lm, fact = make_lm("llama"), {"prompt": "The old town of {}", "subject": "the river", "target_new": "in"}
    last, answer = lm.encode("The old town of the river"), lm.tokens(" in", special=False)[0][0]
    before = lm.forward(last, read=last.last)[0].log_softmax(-1)[answer]
    lm.edit([fact], added, layer=2, strength=20.0)
    assert lm.forward(last, read=last.last)[0].log_softmax(-1)[answer] > before


@pytest.mark.parametrize("added", [(editlab.probes.prompts, "adding-a-probe.md")], indirect=True)
def test_the_probe_of_the_page_is_a_probe(added: str) -> None:
    conformance.test_every_plug_in_explains_itself("probes")
    for family in conformance.FAMILIES:
        conformance.test_a_probe_reads_and_changes_nothing(added, family)


def test_pages_are_printed(cli: Cli) -> None:
    assert "rank-one update" in cli("cat", "rome").out and "## rome\n" in cli("cat", "ROME").out
    assert cli("cat", "adding-a-method").out.startswith("# Adding a method")
    assert cli("cat", "romme").code == 2


def test_how_to_cite() -> None:
    found = yaml.safe_load((ROOT.parent / "CITATION.cff").read_text())
    assert found["version"] == "0.1.0" and found["license"] == "Apache-2.0" and found["authors"]

"""Every notebook runs from top to bottom in a kernel of its own, and shows its figures."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import editlab
from editlab.progress import StepInfo

FOLDER = Path(editlab.__file__).parents[1] / "experiments" / "notebooks"
FIGURES = {
    "channels": 5, "conflicts": 6, "edit": 2, "interop": 2, "locate": 3, "memory": 3, "one_fact": 5, "wise": 1,
}  # fmt: skip
NEEDS = ("jupytext", "nbclient", "ipykernel", "nnsight", "transformer_lens")
PLOTLY = "application/vnd.plotly.v1+json"


def test_none_is_forgotten() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == set(FIGURES)
    readme = (FOLDER / "README.md").read_text()
    assert all(f"| `{name}.py` |" in readme for name in FIGURES)


@pytest.mark.model
@pytest.mark.parametrize("name", sorted(FIGURES))
@pytest.mark.skipif(
    any(find_spec(library) is None for library in NEEDS), reason="a library is missing: editlab[notebook,interop]"
)
def test_it_runs_and_shows_its_figures(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import jupytext
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parents[1]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = jupytext.read(FOLDER / f"{name}.py")
    client = NotebookClient(notebook, timeout=2500, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute()
    shown = [output.get("data", {}) for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    figures = [data[PLOTLY] for data in shown if PLOTLY in data]
    assert len(figures) == FIGURES[name]
    assert all(any(len(trace) > 1 for trace in figure["data"]) for figure in figures)


@pytest.mark.skipif(find_spec("IPython") is None, reason="IPython is not installed: editlab[notebook]")
def test_progress_is_one_line_that_is_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    import IPython.display

    from editlab import notebook

    lines: list[str] = []

    class Handle:
        def update(self, line: Any) -> None:
            lines.append(line._repr_html_())

    def display(line: Any, **options: Any) -> Handle:
        lines.append(f"new: {line._repr_html_()}")
        return Handle()

    monkeypatch.setattr(IPython.display, "display", display)
    monkeypatch.setattr(notebook, "EVERY", 0.0)
    on_step = notebook.progress()
    for done in range(3):
        on_step(StepInfo("a < b", done, 2, "steps", "loss 1"))
    assert len(lines) == 3 and lines[0].startswith("new: a &lt; b <progress") and "0 of 2 steps" in lines[0]
    assert "about 0 s left" in lines[1] and lines[2] == ""

"""The Probe page: every probe has its form, gives a figure and a table, and leaves a run folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from app_driver import App

from editlab import registry


@pytest.mark.parametrize("name", registry.names("probes"))
def test_a_probe_runs_as_it_stands(place: Path, name: str) -> None:
    app = App().open("probe", pr_name=name)
    assert "Nothing probed yet." in app.said
    own = {f"pr.{name}.{field}" for field in registry.get(name, "probes").Config.model_fields}
    assert {w.key for w in app._widgets() if w.key and w.key.startswith(f"pr.{name}.")} == own
    app.do("Run")
    assert len(app.table("prompt")) > 1
    assert app.at.get("plotly_chart")
    (folder,) = Path("runs").glob(f"*-{name}-*")
    assert (folder / "results.parquet").is_file()
    assert any(f"editlab probe {name}" in code for code in app.codes)


def test_what_cannot_be_probed_is_said(place: Path) -> None:
    app = App().open("probe").fill(pr_prompt="").do("Run")
    assert "There is no text. Give at least one." in app.said


def test_a_link_with_an_unknown_probe_says_so(place: Path) -> None:
    app = App().open("probe", pr_name="crystal-ball")
    assert f"probe crystal-ball; it is now {registry.names('probes')[0]}" in app.said

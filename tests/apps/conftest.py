"""A model that the app loads, and a folder for its runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from app_driver import App


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder; the app's model is a fact world."""
    monkeypatch.setenv("EDITLAB_MODEL", "factworld-llama")
    monkeypatch.delenv("EDITLAB_APP_SHARED", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def app(place: Path) -> App:
    """A session on the Overview page."""
    return App().open()

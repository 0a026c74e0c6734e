"""Fixtures of the app's tests: a model that it loads, and a folder for its runs.

A plug-in and not a conftest.py beside these tests: that would hide the one that other tests import by this name.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
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
    from app_driver import App  # here, so that other tests do not wait for streamlit

    return App().open()

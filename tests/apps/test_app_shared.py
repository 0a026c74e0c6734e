"""A server for several people: nothing that they see names its folders."""

from __future__ import annotations

import shutil
from pathlib import Path

import editlab_checkpoints
import pytest
import torch
from app_driver import App
from editlab_apps.sharing import shareable
from transformers import AutoConfig, AutoModelForCausalLM

from editlab.cli.app import command_line

WORLD = Path(editlab_checkpoints.__file__).parent / "factworld-llama"


@pytest.fixture
def shared(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDITLAB_APP_SHARED", "1")
    shutil.copytree(WORLD, place / "world")
    monkeypatch.setenv("EDITLAB_MODEL", str(place / "world"))
    return place


def everything(app: App) -> str:
    """All texts on the page."""
    at = app.at
    kinds = (at.markdown, at.caption, at.code, at.error, at.warning, at.info, at.selectbox, at.text_input, at.json)
    shown = [str(e.value) for kind in kinds for e in kind] + [d.value.to_string() for d in at.dataframe]
    return "\n".join([*shown, app.said, app.sidebar])


def test_no_page_names_a_folder_of_the_server(shared: Path) -> None:
    app = App()
    for page in ("overview", "locate", "edit", "runs"):
        assert str(shared) not in everything(app.open(page)), page
    app.open("edit").do("Preview edit").click("Keep edit").click("Save work")
    assert "world" in app.sidebar and str(shared) not in everything(app.open("runs"))
    assert [path.name for path in (shared / "runs").iterdir()] == [app.lab.id[:8]]
    assert "There is no run in your folder yet" in App().open("runs").said


def test_only_registered_models_can_be_loaded(shared: Path) -> None:
    box = App().open().at.selectbox(key="ov_path")
    assert "smollm2-135m" in box.options and not box.proto.accept_new_options


def test_an_error_names_the_file_and_not_its_folder(shared: Path) -> None:
    (shared / "world" / "config.json").unlink()
    app = App().open()
    assert "config.json" in app.said and "world" in app.said and str(shared) not in everything(app)


def test_only_on_a_shared_server_are_paths_cut_down(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "/srv/models/one has no config.json; see ~/x/y.txt, C:\\a\\b and 1/2 of https://a.org/b/c or and/or."
    monkeypatch.setenv("EDITLAB_APP_SHARED", "1")
    assert shareable(text) == "one has no config.json; see y.txt, b and 1/2 of https://a.org/b/c or and/or."
    monkeypatch.delenv("EDITLAB_APP_SHARED")
    assert shareable(text) == text


def test_other_machines_are_let_in_only_when_asked() -> None:
    alone, shared = (command_line(port=None, shared=several) for several in (False, True))
    assert "--server.address=localhost" in alone and "--server.address=0.0.0.0" not in alone
    assert "--server.address=0.0.0.0" in shared and "--client.showErrorDetails=none" in shared


def test_an_unsupported_model_is_refused_with_what_was_looked_for(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = AutoConfig.for_model("mixtral", vocab_size=512, num_key_value_heads=2, num_local_experts=2, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(place / "experts")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(WORLD / name, place / "experts" / name)
    monkeypatch.setenv("EDITLAB_MODEL", str(place / "experts"))
    app = App().open()
    (error,) = app.at.error
    assert "expert" in app.said and error.value
    assert "Load" in app.enabled and "No model is loaded." in app.sidebar

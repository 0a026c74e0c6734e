"""Plug-ins are found without a list, and one that is no good says why."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from tiny_lm import make_lm

import editlab.edits.methods
from editlab import registry
from editlab.config import MethodConfig, settings_of
from editlab.errors import ConfigError, UnknownName

METHOD = '''"""Adds a constant to one row. A method of the tests."""

from __future__ import annotations

import torch
from pydantic import Field

from editlab.config import MethodConfig
from editlab.state.edit import Delta, Edit


class Config(MethodConfig):
    size: float = Field(0.5, gt=0, description="what is added")


def compute(lm, facts, config, on_step):
    name = lm.adapter.down(lm.model, 0).name
    rows, columns = lm.model.get_parameter(name).shape
    delta = Delta(left=torch.eye(rows, 1) * config.size, right=torch.ones(1, columns))
    return Edit("constant-row", config.model_dump(), [f.model_dump() for f in facts], {name: delta})
'''


@pytest.fixture
def drop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Put a file among the methods, in a folder that stands for `editlab/edits/methods`."""
    folder = tmp_path / "methods"
    folder.mkdir()
    monkeypatch.setattr(editlab.edits.methods, "__path__", [*editlab.edits.methods.__path__, str(folder)])
    before = set(sys.modules)
    yield lambda name, code: (folder / f"{name}.py").write_text(code) and None
    for name in set(sys.modules) - before:
        if name.startswith("editlab.edits.methods."):
            del sys.modules[name]
            vars(editlab.edits.methods).pop(name.rpartition(".")[2], None)


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Stand in for the entry points of installed packages."""

    def set_to(*pairs: tuple[str, str]) -> None:
        found = [EntryPoint(name, value, "editlab.methods") for name, value in pairs]
        monkeypatch.setattr(registry, "entry_points", lambda group: found if group == "editlab.methods" else [])

    return set_to


def test_the_methods_of_the_package_are_found_and_keep_the_contract() -> None:
    found = registry.names()
    assert found == sorted(set(found))
    assert {"rome", "rome-legacy"} <= set(found)
    for name in found:
        module = registry.get(name)
        assert issubclass(module.Config, MethodConfig)
        assert callable(module.compute)
        assert module.__doc__
        module.Config()  # every setting has a default
        for row in settings_of(module.Config):
            assert row["description"], (name, row["name"])
            assert row["range"], (name, row["name"])


@pytest.mark.parametrize("name", ["rome-legacy", "rome_legacy", "ROME-Legacy", " rome-legacy "])
def test_a_name_may_be_written_in_several_ways(name: str) -> None:
    assert registry.get(name).__name__ == "editlab.edits.methods.rome_legacy"


def test_an_unknown_name_gets_the_closest_one() -> None:
    with pytest.raises(UnknownName, match=r"no method 'roem'.*Did you mean 'rome'\?.*Available: .*rome-legacy"):
        registry.get("roem")
    for name in ("", "os", "../rome", "rome.Config", "__init__"):
        with pytest.raises(UnknownName):
            registry.get(name)


def test_a_file_dropped_in_is_a_method(drop: Callable[[str, str], None]) -> None:
    drop("constant_row", METHOD)
    drop("_private", "raise RuntimeError")
    assert "constant-row" in registry.names()
    assert "-private" not in registry.names()
    assert "editlab.edits.methods.constant_row" not in sys.modules  # not before it is asked for
    lm = make_lm("llama")
    row = {"prompt": "{} is", "subject": "a", "target_new": "b"}
    lm.edit(row, method="constant-row", size=2.0)
    assert lm.state_hash != lm.base_hash
    lm.undo()
    assert lm.state_hash == lm.base_hash
    with pytest.raises(ConfigError, match=r"method 'constant-row'.*no setting 'sise'.*Did you mean 'size'"):
        lm.edit(row, method="constant-row", sise=1)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ('"""Nothing."""', r"broken' is no method: it lacks Config, compute"),
        ("class Config: ...", r"is no method: it lacks compute"),
        ("import no_such_module", r"method 'broken' cannot be imported: No module named 'no_such_module'"),
        ("def compute(:", r"method 'broken' cannot be imported: invalid syntax"),
    ],
)
def test_a_file_that_is_no_method_says_so(drop: Callable[[str, str], None], code: str, words: str) -> None:
    drop("broken", code)
    assert "broken" in registry.names()
    with pytest.raises(ConfigError, match=words):
        registry.get("broken")
    assert registry.get("rome")


def test_another_package_can_offer_a_method(offer: Callable[..., None]) -> None:
    offer(("Other_Method", "editlab.edits.methods.rome"))
    assert "other-method" in registry.names()
    assert registry.get("other_method").__name__ == "editlab.edits.methods.rome"


def test_two_methods_of_one_name_are_refused(offer: Callable[..., None], drop: Callable[[str, str], None]) -> None:
    offer(("rome", "some.package"), ("twin", "one.package"), ("twin", "another.package"))
    with pytest.raises(ConfigError, match=r"several methods called 'rome': editlab\.edits\.methods\.rome, some\.pack"):
        registry.get("rome")
    with pytest.raises(ConfigError, match=r"several methods called 'twin': one\.package, another\.package"):
        registry.get("twin")
    assert registry.names().count("rome") == 1
    assert registry.get("rome-legacy")


def test_one_entry_point_listed_twice_is_one(offer: Callable[..., None]) -> None:
    offer(("again", "editlab.edits.methods.rome"), ("again", "editlab.edits.methods.rome"))
    assert registry.get("again")


def test_an_entry_point_that_leads_nowhere_says_so(offer: Callable[..., None]) -> None:
    offer(("lost", "no_such_package.method"))
    with pytest.raises(ConfigError, match="'lost' cannot be imported"):
        registry.get("lost")

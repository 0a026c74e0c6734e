"""Launchers: every task comes back once, a lost worker's task is given to another, and errors are not hidden."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from flaky import Flaky, broken, double

from editlab import registry
from editlab.errors import ConfigError, UnknownName
from editlab.studies.launchers import Lost


def needs(library: str) -> pytest.MarkDecorator:
    extra = {"submitit": "slurm"}.get(library, library)
    return pytest.mark.skipif(find_spec(library) is None, reason=f"{library} is not installed: editlab[{extra}]")


LAUNCHERS = [
    "local",
    # A process a task, and a cluster: half a minute each.
    pytest.param("slurm", marks=[needs("submitit"), pytest.mark.model]),
    pytest.param("ray", marks=[needs("ray"), pytest.mark.model]),
]


@pytest.fixture
def settings(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    # Workers that are made anew find the tasks' module there.
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    return {"cluster": "local", "logs": tmp_path / "logs", "timeout_min": 5} if request.param == "slurm" else {}


def both(names: list[Any]) -> pytest.MarkDecorator:
    """The launcher's name, and the settings that a test gives it."""
    params = [pytest.param(p.values[0], p.values[0], marks=p.marks) if hasattr(p, "values") else (p, p) for p in names]
    return pytest.mark.parametrize(("name", "settings"), params, indirect=["settings"])


@both(LAUNCHERS)
def test_every_task_comes_back_once_although_workers_are_lost(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    module = registry.get(name, "launchers")
    tasks = [Flaky(0, tmp_path), Flaky(1, tmp_path, deaths=1), Flaky(2, tmp_path, deaths=9)]
    config = module.Config(workers=2, threads=1, retries=2, **settings)
    found = list(module.launch(double, tasks, config))
    assert sorted(number for number, _ in found) == [0, 1, 2]
    by_number = dict(found)
    assert by_number[0][0] == 0 and by_number[1][0] == 2
    assert by_number[0][1] != os.getpid()
    assert isinstance(by_number[2], Lost) and "lost" in by_number[2].reason


@both(LAUNCHERS[:2])
def test_an_error_is_the_callers(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    module = registry.get(name, "launchers")
    with pytest.raises(Exception, match="task 7"):
        list(module.launch(broken, [Flaky(7, tmp_path)], module.Config(workers=2, **settings)))


def test_one_worker_is_this_process(tmp_path: Path) -> None:
    module = registry.get("local", "launchers")
    found = list(module.launch(double, [Flaky(3, tmp_path), Flaky(4, tmp_path)], module.Config()))
    assert [(n, value) for n, (value, _, _) in found] == [(0, 6), (1, 8)]
    assert {pid for _, (_, pid, _) in found} == {os.getpid()}


def test_workers_end_with_their_iterator(tmp_path: Path) -> None:
    module = registry.get("local", "launchers")
    running = module.launch(double, [Flaky(i, tmp_path) for i in range(4)], module.Config(workers=2, threads=1))
    _, (_, pid, threads) = next(running)
    assert threads == "1"
    running.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_names_and_settings_are_checked() -> None:
    with pytest.raises(UnknownName, match=r"no launcher 'lokal'\. Did you mean 'local'"):
        registry.get("lokal", "launchers")
    with pytest.raises(ConfigError, match="there is no setting 'partition'"):
        from editlab.studies.plan import StudyPlan
        from editlab.studies.run import launcher_of

        launcher_of(StudyPlan(models="m", methods="rome", launch={"partition": "gpu"}), {})

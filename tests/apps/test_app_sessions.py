"""Sessions beside each other: each sees its own edits only, whatever the others do, and gives its memory back."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from app_driver import App
from editlab_apps import drafts
from editlab_apps.jobs import JobManager
from editlab_apps.models import Models, Source
from editlab_apps.session import Lab
from editlab_apps.work import preview

from editlab import LM, Fact
from editlab.runs import read_run
from editlab.runs.journal import Journal
from editlab.state.packs.reading import read_manifest

CAPITALS = {
    "France": "Rome", "Japan": "Oslo", "Italy": "Cairo", "Germany": "Lima", "Spain": "Tokyo", "Norway": "Madrid",
    "Egypt": "Paris", "Peru": "Berlin",
}  # fmt: skip
SECONDS = 120.0


def fact(country: str) -> Fact:
    return Fact(prompt="The capital of {} is", subject=country, target_new=CAPITALS[country])


def fork(models: Models, source: Source) -> LM:
    """What a session gets."""
    job = models.ask(source)
    assert job.wait(SECONDS) and job.error is None, job.error
    return job.result.base.fork()


def capital(lm: LM, country: str) -> str:
    return lm.generate([f"The capital of {country} is"], 4)[0].strip()


def test_two_tabs_do_not_see_each_others_edits(app: App) -> None:
    other = App().open()
    assert app.lab.plain.model is not other.lab.plain.model
    base = other.lab.lm.base_hash
    app.open("edit").do("Preview edit").click("Keep edit")
    other.open("overview").fill(ov_tokens=2).click("Answer")
    assert other.codes[0].startswith("Paris") and "base" in other.sidebar
    assert "The ledger is empty" in App().open("edit", ed_tab="Ledger").said
    assert other.lab.lm.state_hash == base == app.lab.lm.base_hash != app.lab.lm.state_hash


@pytest.mark.model
def test_eight_sessions_edit_at_once(place: Path) -> None:
    jobs = JobManager()
    models = Models(jobs)
    source = Source("factworld-llama")
    plain = fork(models, source)
    before = {country: capital(plain, country) for country in CAPITALS}
    weights = {name: tensor.clone() for name, tensor in plain.model.state_dict().items()}
    process = psutil.Process()
    base_memory = process.memory_info().rss

    def visit(country: str) -> Lab:
        lm = fork(models, source)
        lab = Lab(lm, lm.fork(), source, jobs)
        lab.start("edit", "Editing", preview(lab.lm, fact(country), "rome", {}))
        # Others ask meanwhile; nobody's unfinished edit may show.
        while lab.job is not None and lab.job.is_live:
            asked = next(iter(CAPITALS))
            assert capital(lab.lm, asked) == before[asked]
            lab.job.wait(0.5)
        lab.collect()
        found = lab.outcomes["edit"]
        assert found.error is None, found.error
        lab.lm.ledger.apply(found.result.report.entry.edit)
        return lab

    with ThreadPoolExecutor(len(CAPITALS)) as pool:
        labs = dict(zip(CAPITALS, pool.map(visit, CAPITALS, timeout=SECONDS), strict=True))
    changed = 0
    for own, lab in labs.items():
        alone = plain.fork()
        alone.ledger.apply(lab.lm.ledger.active[0].edit)
        for country in CAPITALS:
            assert capital(lab.lm, country) == capital(alone, country), (own, country)
        assert lab.lm.state_hash == alone.state_hash
        changed += capital(lab.lm, own).startswith(CAPITALS[own])
        assert all(capital(lab.plain, c) == before[c] for c in CAPITALS)
    assert changed >= 6, f"{changed} of 8 edits fire"
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, weights[name]), f"{name} of the base changed"
    assert (process.memory_info().rss - base_memory) / len(labs) < 60e6


def test_a_closed_session_is_freed(place: Path) -> None:
    models = Models(JobManager())
    source = Source("factworld-llama")
    lm = fork(models, source)
    lab = Lab(lm, lm.fork(), source, JobManager())
    entry = lab.lm.edit(fact("France"))
    held = [weakref.ref(lab.lm.model), weakref.ref(lab.plain.model)]
    hidden = lab.lm.model.get_parameter(next(iter(entry.edit.deltas)))
    held.append(weakref.ref(hidden))
    del lm, lab, entry, hidden
    gc.collect()
    assert [ref() for ref in held] == [None, None, None]
    assert capital(fork(models, source), "France").startswith("Paris")


KILLED = """
import sys
from pathlib import Path
from editlab import LM
from editlab.data.formats import load_facts
from editlab.runs import Plan, run_batch

def on_step(step):
    print(step.task, step.done, flush=True)

run_batch(LM.from_pretrained("factworld-llama"), load_facts(Path("facts.jsonl")), Plan(method="rome",
          mode="sequential"), Path("runs/20260101-edit-killed"), on_step)
"""


def test_a_killed_batch_is_listed_as_interrupted_and_resumed_from_the_app(place: Path) -> None:
    lines = [fact(country).model_dump_json(exclude_defaults=True) for country in list(CAPITALS)[:4]]
    (place / "facts.jsonl").write_text("\n".join(lines))
    folder = place / "runs" / "20260101-edit-killed"
    child = subprocess.Popen([sys.executable, "-c", KILLED], cwd=place, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for _ in child.stdout:
        if (folder / "journal.jsonl").is_file() and '"committed"' in (folder / "journal.jsonl").read_text():
            os.kill(child.pid, signal.SIGKILL)
            break
    assert child.wait(SECONDS) == -signal.SIGKILL
    assert not (folder / "manifest.json").exists()

    app = App().open("runs")
    assert list(app.table("run")["state"]) == ["● interrupted"]
    app.do("Resume")
    assert not app.at.error
    app.open("runs")
    assert list(app.table("run")["state"]) == ["complete"]
    assert sum(event["event"] == "committed" for event in Journal(folder).events) == 4
    whole = LM.from_pretrained("factworld-llama")
    for given in read_run(folder)[2]:
        whole.edit(given)
    app.click("Put its edits in force")
    assert app.lab.lm.state_hash == whole.state_hash


def test_what_was_not_saved_survives_a_reload(app: App, place: Path) -> None:
    app.open("edit").do("Preview edit").click("Keep edit")
    state = app.lab.state
    after = App().open()  # what a reload gives: a new session, the old one is gone or about to go
    assert "Another tab did not save 1 edit" in after.sidebar and "base" in after.sidebar
    after.click("Open a copy")
    assert after.lab.state == state and "1 edit active" in after.sidebar and "until saved" in after.sidebar
    assert "Another tab" not in after.sidebar
    after.click("Undo last")
    assert app.lab.state == state, "a copy is the same ledger"
    app.click("Save work").run()
    assert "Another tab" not in App().open().sidebar


def test_a_draft_can_be_forgotten_and_belongs_to_its_weights(app: App, place: Path) -> None:
    app.open("edit").do("Preview edit").click("Keep edit")
    other = App().open().fill(ov_path="factworld-gpt2").click("Load")
    assert "Another tab" not in other.sidebar
    App().open().click("Forget")
    assert "Another tab" not in App().open().sidebar and "1 edit active" in app.run().sidebar
    assert not (place / "runs" / ".drafts").exists()


def test_a_draft_that_goes_while_another_tab_looks_at_it_is_not_offered(
    app: App, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.open("edit").do("Preview edit").click("Keep edit")

    def read_and_lose(folder: Path) -> Any:
        manifest = read_manifest(folder)
        shutil.rmtree(folder)
        return manifest

    monkeypatch.setattr(drafts, "read_manifest", read_and_lose)
    other = App().open()
    assert not other.at.exception and "Another tab" not in other.sidebar and not list(place.glob("**/pack.json"))


def test_on_a_shared_server_nobody_is_offered_anothers_draft(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDITLAB_APP_SHARED", "1")
    App().open("edit").do("Preview edit").click("Keep edit").run()
    assert not list(place.glob("**/.drafts")) and "Another tab" not in App().open().sidebar

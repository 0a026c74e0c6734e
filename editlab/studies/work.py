"""One run of a study, carried out by whoever is asked to: its edits with their journal, then its evaluation.

What was begun is gone on with and what is finished is left alone, so a run may be asked for any number of times, by
workers that know nothing of each other: the run's folder is locked while one of them works on it.
"""

from __future__ import annotations

import random
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

from editlab.data.formats import load_facts
from editlab.data.relations import relations
from editlab.errors import EditlabError, RequestError, RunBusy
from editlab.evaluation.evaluate import evaluate
from editlab.evaluation.known import known, preferred
from editlab.lm import LM
from editlab.models.load import is_out_of_memory
from editlab.progress import OnStep, silent
from editlab.runs.batch import is_finished, run_batch
from editlab.runs.journal import Journal, alone
from editlab.state.files import write_text
from editlab.studies.plan import RunSpec

if TYPE_CHECKING:
    from editlab.facts import Fact

EVALUATION = "evaluation"
LOGS = "logs"
LOOK_EVERY = 0.5  # seconds between looks at a run that another process holds


@dataclass(frozen=True)
class Task:
    """A run to carry out. `force`: go on although what it rests on has changed."""

    spec: RunSpec
    folder: Path
    threads: int
    force: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a run. `failed` says why there are no numbers; it is empty if there are."""

    name: str
    failed: str = ""
    state: str = ""


def is_done(folder: Path) -> bool:
    """Whether nothing of a run is left to do."""
    return (folder / EVALUATION / "evaluation.json").is_file() and is_finished(folder)


def carry_out(task: Task, on_step: OnStep = silent) -> Outcome:
    """Do what is left of a run."""
    before = torch.get_num_threads()
    torch.set_num_threads(task.threads)
    try:
        while not is_done(task.folder):
            try:
                _go_on(task, on_step)
            except RunBusy:  # of a study that was killed while its workers were not
                time.sleep(LOOK_EVERY)
        finished = Journal(task.folder).last("finished")
        return Outcome(task.spec.name, state=finished["state"] if finished else "")
    except EditlabError as error:
        return Outcome(task.spec.name, failed=str(error))
    except Exception as error:  # one run of many; the others can do without it
        log = task.folder.parent.parent / LOGS / f"{task.spec.name}.txt"
        write_text(log, traceback.format_exc())
        what = "Memory ran out" if is_out_of_memory(error) else f"It broke with {type(error).__name__}"
        return Outcome(task.spec.name, failed=f"{what}; see {LOGS}/{log.name}.")
    finally:
        torch.set_num_threads(before)


def _go_on(task: Task, on_step: OnStep) -> None:
    spec, folder = task.spec, task.folder
    base = model_of(spec)
    if not is_finished(folder):
        run_batch(base.fork(), facts_of(base, spec), spec.plan, folder, on_step, force=task.force)
    reasons = [event["reason"] for event in Journal(folder).events if event["event"] == "failed"]
    # From the disk, whether the edits were made just now or before a kill.
    lm = base.fork()
    lm.load_edits(folder)
    if not len(lm.ledger):
        raise RequestError(f"No fact could be edited: {reasons[0]}")
    with alone(folder):
        if is_done(folder):
            return
        mode = "single" if spec.plan.mode == "single" else "together"
        evaluate(lm, None, spec.suite, mode=mode, on_step=on_step).save(folder / EVALUATION)


_model: dict[tuple[str, str, str], LM] = {}  # the latest, by name, dtype and device
_pools: WeakKeyDictionary[LM, dict[tuple[str, bool], Sequence[Fact]]] = WeakKeyDictionary()


def model_of(spec: RunSpec) -> LM:
    """The unedited model of a run, kept for the next run of this process."""
    key = (spec.model, spec.dtype, spec.device)
    if key not in _model:
        _model.clear()  # before the next is loaded: there may be room for one only
        _model[key] = LM.from_pretrained(spec.model, dtype=spec.dtype, device=spec.device)
    return _model[key]


def facts_of(lm: LM, spec: RunSpec) -> list[Fact]:
    """The facts of a run: drawn from its source by its seed, in the order in which they are edited.

    Raises:
        RequestError: the source has too few, or the model has too few of them to unlearn.
    """
    pools = _pools.setdefault(lm, {})
    key = (spec.facts, spec.known)
    if key not in pools:
        pools[key] = _pool(lm, *key)
    pool = pools[key]
    if len(pool) < spec.n:
        which = f" that {lm.name} knows" if spec.known else ""
        raise RequestError(f"'{spec.facts}' has {len(pool)} facts{which}, {spec.n} are wanted.", "Use a smaller 'n'.")
    return random.Random(f"study {spec.seed}").sample(pool, spec.n)


def _pool(lm: LM, source: str, is_known: bool) -> Sequence[Fact]:
    if source in relations():
        relation = relations()[source]
        return known(lm, relation).facts() if is_known else relation.facts()
    facts = load_facts(Path(source))
    return preferred(lm, facts) if is_known else facts

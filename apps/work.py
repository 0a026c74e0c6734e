"""What jobs do: each function here returns work for the job manager, and knows nothing of streamlit.

The model to work on is forked when the work is asked for, in the session's own thread, so that what the session does
in the meantime does not reach it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from editlab import registry
from editlab.config import build
from editlab.edits.preserve import covariances
from editlab.edits.presets import with_preset
from editlab.edits.settings import SeveralLayersSettings, edit_layer, edit_layers
from editlab.errors import ConfigError
from editlab.evaluation.results import Evaluation
from editlab.facts import Fact
from editlab.lm import LM
from editlab.probes.routing import Routing
from editlab.probes.trace import Config, trace_many
from editlab.probes.trace_results import Trace
from editlab.progress import OnStep, StepInfo
from editlab.report import EditReport
from editlab.runs import (
    BatchResult,
    Estimate,
    Plan,
    edit_and_measure,
    estimate,
    read_run,
    run_batch,
    run_folder,
    run_probe,
    write_evaluation,
    write_run,
    write_trace,
)
from editlab.runs.memory.estimate import Cost
from editlab.runs.memory.estimate import cost as memory_cost_of
from editlab.runs.memory.run import Verb, read_planned, run_memory
from editlab.runs.memory.settings import TrainingSettings
from editlab.runs.memory.verbs import VERBS
from editlab.runs.records import recorded_mode
from editlab.state.files import filled_or_removed
from editlab.viz.edits import batch_points, edit_probabilities, edits_so_far
from editlab.viz.files import save_figures

FOR_ONE, FOR_MANY = "rome", "memit"  # the methods that the Edit page begins with
DRIFT = ("control_kl", "control_same")


@dataclass(frozen=True)
class Preview:
    """An edit that was solved on a fork and not kept.

    Attributes:
        parent: hash of the state it was solved on. drift: of the fork from the unedited model, at control prompts.
    """

    report: EditReport
    drift: Evaluation
    routing: Routing
    parent: str


@dataclass(frozen=True)
class Ran:
    """Something that left a run folder; `asked` is what it was asked for."""

    folder: Path
    result: Any
    asked: Mapping[str, Any] = field(default_factory=dict)


def preview(lm: LM, fact: Fact, method: str, settings: Mapping[str, Any]) -> Callable[[OnStep], Preview]:
    """Solve and measure one edit, without keeping it."""
    twin, parent = lm.fork(), lm.state_hash

    def work(on_step: OnStep) -> Preview:
        on_step(StepInfo("preparing", 0))
        report = edit_and_measure(twin, fact, method, settings, on_step)
        on_step(StepInfo("measuring drift", 0))
        drift = twin.evaluate([report.fact], metrics=DRIFT, on_step=on_step)
        return Preview(report, drift, twin.route([row.prompt for row in report.rows]), parent)

    return work


def prepare(base: LM) -> Callable[[OnStep], None]:
    """Collect the key statistics that the first edit would have to wait for, in the order in which pages need them."""

    def work(on_step: OnStep) -> None:
        for method in (FOR_ONE, FOR_MANY):
            settings = build(registry.get(method).Config, with_preset(base.adapter, method, {}), method)
            if isinstance(settings, SeveralLayersSettings):
                covariances(base, edit_layers(base.adapter, settings), settings, on_step)
            else:
                covariances(base, [edit_layer(base.adapter, settings)], settings, on_step)

    return work


def replay(lm: LM, entry_id: str) -> Callable[[OnStep], LM]:
    """Take an edit back and solve the later ones again; gives the fork on which that was done."""
    twin = lm.fork()

    def work(on_step: OnStep) -> LM:
        twin.undo(entry_id, replay=True, on_step=on_step)
        return twin

    return work


def batch(plain: LM, facts: Sequence[Fact], plan: Plan, root: Path) -> Callable[[OnStep], Ran]:
    """Edit facts by a plan, into a new run folder."""
    return _batch(plain.fork(), facts, plan, run_folder("edit", plain.base_hash, root))


def cost(plain: LM, facts: Sequence[Fact], plan: Plan) -> Callable[[OnStep], Estimate]:
    """What a batch would cost, measured on its first facts."""
    twin = plain.fork()
    return lambda on_step: estimate(twin, facts, plan, on_step)


def resume(plain: LM, folder: Path) -> Callable[[OnStep], Ran]:
    """Go on with a run of edits that was interrupted."""
    plan, _, facts = read_run(folder)
    return _batch(plain.fork(), facts, plan, folder)


def _batch(twin: LM, facts: Sequence[Fact], plan: Plan, folder: Path) -> Callable[[OnStep], Ran]:
    def work(on_step: OnStep) -> Ran:
        result: BatchResult = run_batch(twin, facts, plan, folder, on_step)
        if len(result.reports) > 1:
            figures = {"effects": batch_points(result.reports), "edits-so-far": edits_so_far(result.reports)}
            save_figures(folder, figures)
        return Ran(folder, result)

    return work


def locate(lm: LM, asked: Mapping[str, Any], settings: Mapping[str, Any], root: Path) -> Callable[[OnStep], Ran]:
    """Trace one prompt, into a run folder.

    Args:
        asked: prompt, subject, answer (None: what the model says).
    """
    twin = lm.fork()

    def work(on_step: OnStep) -> Ran:
        found: Trace = twin.locate(**asked, on_step=on_step, **settings)
        return Ran(write_trace(run_folder("locate", twin.base_hash, root), twin, found, asked), found, asked)

    return work


def locate_many(lm: LM, facts: Sequence[Fact], settings: Mapping[str, Any], root: Path) -> Callable[[OnStep], Ran]:
    """Trace facts and average over them, into a run folder."""
    twin = lm.fork()

    def work(on_step: OnStep) -> Ran:
        found = trace_many(twin, facts, build(Config, settings, "the trace"), on_step)
        return Ran(write_trace(run_folder("locate", twin.base_hash, root), twin, found, {}), found)

    return work


def memory(lm: LM, verb: str, settings: TrainingSettings, folder: Path) -> Callable[[OnStep], Ran]:
    """A study of memory, into a new run folder."""
    return _memory(lm.fork(), VERBS[verb], settings, folder)


def memory_cost(lm: LM, verb: str, settings: TrainingSettings) -> Callable[[OnStep], Cost]:
    """What a study would cost, measured on one update and one probe."""
    twin, chosen = lm.fork(), VERBS[verb]

    def work(on_step: OnStep) -> Cost:
        return memory_cost_of(twin, settings, chosen.laid_out(twin, settings, on_step), chosen.probed(settings))

    return work


def resume_memory(plain: LM, folder: Path) -> Callable[[OnStep], Ran]:
    """Go on with a study that was interrupted.

    Raises:
        ConfigError: the folder is none.
    """
    planned = read_planned(folder, VERBS)
    if planned is None:
        raise ConfigError(f"'{folder.name}' is no study of memory.")
    twin = plain.fork()
    if planned.edits is not None:
        twin.load_edits(planned.edits)
    return _memory(twin, planned.verb, planned.settings, folder)


def _memory(twin: LM, verb: Verb, settings: TrainingSettings, folder: Path) -> Callable[[OnStep], Ran]:
    return lambda on_step: Ran(folder, run_memory(twin, verb, settings, folder, on_step))


def probe(
    lm: LM, name: str, prompts: Sequence[str], settings: Mapping[str, Any], root: Path
) -> Callable[[OnStep], Ran]:
    """Probe prompts, into a run folder."""
    twin = lm.fork()

    def work(on_step: OnStep) -> Ran:
        folder = run_folder(name, twin.base_hash, root)
        return Ran(folder, run_probe(twin, prompts, name, settings, folder, on_step), {"probe": name})

    return work


def evaluate(plain: LM, run: Path, root: Path) -> Callable[[OnStep], Ran]:
    """Measure the edits of a run beside the unedited model, into a run folder."""
    twin = plain.fork()

    def work(on_step: OnStep) -> Ran:
        twin.load_edits(run)
        found = twin.evaluate(mode=recorded_mode(run), on_step=on_step)
        folder = run_folder("eval", twin.base_hash, root)
        return Ran(write_evaluation(folder, twin, found, {"pack": str(run)}), found)

    return work


def save_ledger(lm: LM, reports: Iterable[EditReport], root: Path) -> Path:
    """Write the ledger as a run folder, with what was measured of the edits that are still in it."""
    kept = [r for r in reports if r.entry.id in lm.ledger]
    folder = run_folder("ledger", lm.base_hash, root)
    with filled_or_removed(folder):
        save_figures(folder, {f"edit-{r.entry.id}": edit_probabilities(r) for r in kept})
        return write_run(folder, lm, "ledger", {"model": lm.name}, kept)

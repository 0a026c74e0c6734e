"""Batches of edits that survive a kill.

1. The first line of the journal has the plan, the facts, and hashes of what they rest on (weights, tokenizer, library
   versions).
2. Facts are edited in chunks: one fact, some, or all, by the mode. A chunk's edit is saved as a pack of its own, and
   then "committed" to the journal with the hash of the weights that it led to.
3. At the end everything that was kept is scored, results and one pack of all edits are written, and the manifest.

Going on with a run puts the committed packs back, checks the hash after each, and goes on with the next chunk. No step
depends on a generator that ran before, so the final weights are those of an unbroken run, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import Field, TypeAdapter, ValidationError

from editlab.config import MethodConfig
from editlab.edits.engine import engine
from editlab.errors import ConfigError, EditFailed, PackError, RequestError, ResumeRefused, WriteFailed
from editlab.evaluation.prefixes import settle
from editlab.evaluation.scorer import score_again, score_facts
from editlab.facts import Fact
from editlab.progress import OnStep, StepInfo, silent
from editlab.report import EditReport, ReportRow, compare
from editlab.runs.events import check_events
from editlab.runs.folder import check_free, versions, write_config, write_run
from editlab.runs.journal import NAME as JOURNAL
from editlab.runs.journal import Journal, alone
from editlab.runs.measure import FailedRow
from editlab.state.files import filled_or_removed, remove
from editlab.state.packs import apply_pack, check_room, read_pack, save_pack

if TYPE_CHECKING:
    from editlab.lm import LM
    from editlab.state.ledger import Entry

Mode = Literal["single", "batch", "sequential", "sequential-batched"]
MODES: tuple[Mode, ...] = get_args(Mode)
_ROWS = TypeAdapter(tuple[ReportRow, ...])
EDITS = "edits"  # folder of the packs of single edits, until the run is finished


class StopRules(MethodConfig):
    """When a run that keeps its edits ends early; checked after every `every`-th edit."""

    max_kl: float | None = Field(
        default=None, gt=0, description="mean KL of the control prompts' next token from the unedited model (nats)"
    )
    max_perplexity: float | None = Field(
        default=None, gt=1, description="perplexity of held-out prose over the unedited model's"
    )
    max_norm: float | None = Field(default=None, gt=1, description="norm of an edited matrix over the unedited one's")
    every: int = Field(default=1, ge=1, description="edits between checks")

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by the metric they are on."""
        named = {"control_kl": self.max_kl, "perplexity": self.max_perplexity, "norm_ratio": self.max_norm}
        return {name: limit for name, limit in named.items() if limit is not None}


class Plan(MethodConfig):
    """What a batch run does: the contents of its `config.yaml`.

    "single" undoes each edit before the next, and scores it right after it was made; "batch" makes one edit of all
    facts; "sequential" one a fact, "sequential-batched" one of every `batch_size` facts, and they keep them all. All
    but "single" score every fact after the last edit.
    """

    method: str = "rome"
    mode: Mode = "single"
    batch_size: int = Field(default=16, ge=1, description="facts of one edit in mode sequential-batched")
    settings: dict[str, Any] = Field(default_factory=dict, description="of the method")
    stop: StopRules = StopRules()

    @property
    def keeps(self) -> bool:
        """Whether edits stay in force for later ones."""
        return self.mode != "single"

    def chunks(self, facts: Sequence[Fact]) -> list[Sequence[Fact]]:
        """Facts by the edit that writes them."""
        size = {"single": 1, "sequential": 1, "batch": max(1, len(facts))}.get(self.mode, self.batch_size)
        return [facts[start : start + size] for start in range(0, len(facts), size)]


@dataclass(frozen=True)
class BatchResult:
    """What a batch run gave.

    Attributes:
        reports: one a fact that was edited. failed: the others, and why.
        stopped: why the run ended early, or "".
    """

    reports: tuple[EditReport, ...]
    failed: tuple[FailedRow, ...]
    stopped: str = ""

    @property
    def fired(self) -> int:
        """How many facts are answered with the new target."""
        return sum(r.fires for r in self.reports)


def run_batch(
    lm: LM, facts: Sequence[Fact], plan: Plan, folder: Path, on_step: OnStep = silent, *, force: bool = False
) -> BatchResult:
    """Edit the facts by the plan, or go on with a run that was.

    Args:
        folder: empty, or that of a run of the same plan, facts and model.
        force: go on although something that the run rests on has changed.

    Raises:
        ConfigError: a setting is wrong, or the folder holds something else. RunBusy: another process writes there.
        ResumeRefused: the run rests on something else. PackError, WriteFailed: the system does not let it be written;
            what is done can be gone on with, and a run that has done nothing yet leaves nothing. Facts that cannot be
            edited fail alone, or with those that share their edit.
    """
    if not facts:
        raise ConfigError("There is no fact to edit.", "Give at least one.")
    if lm.ledger.active:
        raise ConfigError("A batch starts from the unedited model.", "Undo the edits, or load the model afresh.")
    engine(lm, plan.method, plan.settings)  # what it refuses is refused before any work
    facts = settle(lm, facts)
    check_room([fact.model_dump(mode="json") for fact in facts], len(plan.chunks(facts)))
    with alone(folder):
        for leftover in folder.glob(".*.tmp"):  # of a process that was killed while it wrote
            leftover.unlink()
        journal = Journal(folder)
        check_events(journal.events, folder)
        basis = _basis(lm, facts, plan)
        if not journal.events:
            check_free(folder)
            rows = [fact.model_dump(mode="json", exclude_defaults=True) for fact in facts]
            with filled_or_removed(folder):
                journal.add("planned", basis=basis, plan=plan.model_dump(mode="json"), model=lm.name, facts=rows)
                write_config(folder, plan.model_dump(mode="json") | {"model": lm.name})
        elif journal.last("finished"):
            raise ConfigError(f"The run in '{folder}' is finished.", "Choose another --out for a new one.")
        else:
            check_basis(journal, basis, force)
        try:
            return _Runner(lm, facts, plan, folder, journal, on_step).run()
        except (ConfigError, WriteFailed):
            # A setting that only the method could find wrong, or a full disk: there is nothing to go on with.
            if not any(e["event"] in ("committed", "failed") for e in journal.events):
                _take_back(folder)
            raise


def _take_back(folder: Path) -> None:
    """Remove what a run has written before its first edit, and no more: others may write beside it by now."""
    for name in (EDITS, JOURNAL, "config.yaml"):
        remove(folder / name)


def _basis(lm: LM, facts: Sequence[Fact], plan: Plan) -> dict[str, str]:
    """Everything that the results depend on, by name."""

    def sha(value: Any) -> str:
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

    return {
        "weights": lm.base_hash,
        "tokenizer": lm.tokenizer_hash,
        "facts": sha([_content(f) for f in facts]),
        "plan": sha(plan.model_dump(mode="json")),
        "dtype": str(next(lm.model.parameters()).dtype),
        **versions(),
    }


def _content(fact: Fact) -> dict[str, Any]:
    row = fact.model_dump(mode="json")
    if (fact.target_prefix, fact.target_prefix_by) == ("space", "rule"):
        del row["target_prefix"], row["target_prefix_by"]  # what runs from before there was a choice have
    return row


def check_basis(journal: Journal, basis: dict[str, str], force: bool) -> None:
    """Refuse to go on with a run that rests on something else, unless forced; then the journal says so.

    Raises:
        ResumeRefused: it does.
    """
    then = journal.events[0].get("basis", {})
    changed = [f"{k} ({then.get(k, '?')[:12]} then, {v[:12]} now)" for k, v in basis.items() if then.get(k) != v]
    if changed and not force:
        raise ResumeRefused(
            f"This run rests on something else: {', '.join(changed)}.",
            "Put it back as it was, start a new run, or use --force to go on all the same.",
        )
    if changed:
        journal.add("forced", changed=changed)


class _Runner:
    """One pass through a plan; chunks that the journal has as done are put back rather than done again."""

    def __init__(
        self, lm: LM, facts: Sequence[Fact], plan: Plan, folder: Path, journal: Journal, on_step: OnStep
    ) -> None:
        self.lm, self.facts, self.plan, self.folder = lm, facts, plan, folder
        self.journal, self.on_step = journal, on_step
        self.written: list[tuple[Fact, Entry, float]] = []
        self.singles: list[EditReport] = []
        self.failed: list[FailedRow] = []

    def run(self) -> BatchResult:
        before = score_facts(self.lm, self.facts, written=self.facts if self.plan.keeps else ())  # unedited
        scores = {id(f): s for f, s in zip(self.facts, before, strict=True)}
        chunks = self.plan.chunks(self.facts)
        done = 0
        for number, chunk in enumerate(chunks):
            note = chunk[0].label if len(chunk) == 1 else f"{len(chunk)} at once"
            self.on_step(StepInfo("editing", done, len(self.facts), "facts", note))
            event = self.journal.of_chunk(number)
            if event is None:
                if self._stopped:
                    break
                self._edit(number, chunk, scores)
            else:
                self._put_back(number, chunk, event)
            done += len(chunk)
            if self.plan.keeps and self.plan.stop.limits and not self._stopped:
                self._check_limits(number, is_last=number == len(chunks) - 1)
        self.on_step(StepInfo("editing", len(self.facts), len(self.facts), "facts"))
        reports = self.singles
        if self.plan.keeps and self.written:
            after = score_again(self.lm, [scores[id(fact)] for fact, _, _ in self.written])
            reports = [
                EditReport(self.lm.ledger[entry.id], fact, compare(fact, scores[id(fact)], new), seconds)
                for (fact, entry, seconds), new in zip(self.written, after, strict=True)
            ]
        result = BatchResult(tuple(reports), tuple(self.failed), self._stopped)
        self._finish(result)
        return result

    @property
    def _stopped(self) -> str:
        event = self.journal.last("stopped")
        return event["reason"] if event else ""

    def _edit(self, number: int, chunk: Sequence[Fact], scores: dict[int, Any]) -> None:
        self.journal.add("started", chunk=number)
        started = time.perf_counter()
        try:
            entry = self.lm.edit(list(chunk), self.plan.method, on_step=self.on_step, **self.plan.settings)
        except (RequestError, EditFailed) as error:
            self.journal.add("failed", chunk=number, reason=str(error))
            self._note_failure(chunk, str(error))
            return
        seconds = (time.perf_counter() - started) / len(chunk)
        state, rows = self.lm.state_hash, None
        if not self.plan.keeps:
            (after,) = score_again(self.lm, [scores[id(chunk[0])]])
            entry = self.lm.undo(entry.id)
            report = EditReport(entry, chunk[0], compare(chunk[0], scores[id(chunk[0])], after), seconds)
            self.singles.append(report)
            rows = [asdict(row) for row in report.rows]
        save_pack(self._pack(number), self.lm.ledger, self.lm.name, only=[entry.id])
        self.journal.add(
            "committed", chunk=number, edit=entry.id, digest=entry.edit.digest, state=state, seconds=seconds, rows=rows
        )
        if self.plan.keeps:
            self._note_written(chunk, entry, seconds)

    def _note_written(self, chunk: Sequence[Fact], entry: Entry, seconds: float) -> None:
        """A method may have left out facts that cannot be written together."""
        left_out = entry.edit.info.get("failed")
        rows = left_out if isinstance(left_out, list) else []  # a pack may say anything there
        reasons = {f.get("row"): str(f.get("reason")) for f in rows if isinstance(f, dict)}
        for row, fact in enumerate(chunk):
            if row in reasons:
                self._note_failure([fact], reasons[row])
            else:
                self.written.append((fact, entry, seconds))

    def _put_back(self, number: int, chunk: Sequence[Fact], event: dict[str, Any]) -> None:
        if event["event"] == "failed":
            self._note_failure(chunk, event["reason"])
            return
        try:
            pack = read_pack(self._pack(number))
            if len(pack) != 1:
                raise PackError(f"Its pack has {len(pack)} edits.")
            (entry,) = apply_pack(pack, self.lm.ledger)
        except PackError as error:
            raise ResumeRefused(f"Edit {event['edit']} cannot be put back. {error.what}", "Start a new run.") from error
        if entry.edit.digest != event["digest"] or (self.plan.keeps and self.lm.state_hash != event["state"]):
            raise ResumeRefused(
                f"Edit {event['edit']} leads to other weights than it did.", "Start a new run; its pack was changed."
            )
        if self.plan.keeps:
            self._note_written(chunk, entry, event["seconds"])
        else:
            try:
                rows = _ROWS.validate_python(event["rows"])
            except ValidationError:
                raise ResumeRefused(
                    f"The scores of edit {event['edit']} in the journal are damaged.", "Start a new run."
                ) from None
            self.singles.append(EditReport(entry, chunk[0], rows, event["seconds"]))

    def _note_failure(self, chunk: Sequence[Fact], reason: str) -> None:
        self.failed += [FailedRow(fact.id or fact.label, reason) for fact in chunk]

    def _pack(self, number: int) -> Path:
        return self.folder / EDITS / f"{number:05d}"

    def _check_limits(self, number: int, *, is_last: bool) -> None:
        """Measure drift after a chunk unless the journal has it, and end the run where a limit is passed."""
        if (number + 1) % self.plan.stop.every and not is_last:
            return
        if not self.lm.ledger.active:
            return
        limits = self.plan.stop.limits
        events = self.journal.events
        values = next((e["values"] for e in events if e["event"] == "checked" and e["chunk"] == number), None)
        if values is None:
            found = self.lm.evaluate(self.facts[:1], metrics=tuple(limits), on_step=self.on_step)
            measured = {line.metric for line in found.lines}  # a side memory changes no matrix, so no norm
            values = {
                name: found[name].edited.mean / (found[name].base.mean if name == "perplexity" else 1.0)
                for name in limits
                if name in measured
            }
            self.journal.add("checked", chunk=number, values=values)
        passed = [
            f"{name} is {values[name]:.3g}, above {limit:g}"
            for name, limit in limits.items()
            if name in values and values[name] > limit
        ]
        if passed:
            self.journal.add("stopped", chunk=number, reason=f"after {len(self.written)} facts {' and '.join(passed)}")

    def _finish(self, result: BatchResult) -> None:
        extra: dict[str, Any] = {"mode": self.plan.mode, "state": "stopped" if result.stopped else "complete"}
        if result.stopped:
            extra["stopped"] = result.stopped
        config = self.plan.model_dump(mode="json") | {"model": self.lm.name}
        write_run(self.folder, self.lm, "edit", config, result.reports, result.failed, extra)
        if self.journal.last("finished") is None:
            self.journal.add("finished", state=self.lm.state_hash)
        drop_single_packs(self.folder)


def read_run(folder: Path) -> tuple[Plan, str, list[Fact]]:
    """The plan, the model's name and the facts of a batch run.

    Raises:
        ConfigError: the folder is no batch run, or was killed before it began. ResumeRefused: its plan is damaged.
    """
    events = Journal(folder).events if (folder / JOURNAL).is_file() else []
    if not events:
        raise ConfigError(
            f"'{folder}' is no run that can be gone on with.",
            "Name the folder of an 'editlab edit --file' that was stopped after it began.",
        )
    check_events(events, folder)
    planned = events[0]
    try:
        facts = [Fact.model_validate(row) for row in planned["facts"]]
        return Plan.model_validate(planned["plan"]), planned["model"], facts
    except ValidationError:
        raise ResumeRefused(f"The plan or a fact in '{folder}/{JOURNAL}' is damaged.", "Start a new run.") from None


def is_finished(folder: Path) -> bool:
    """Whether nothing of a batch run is left to do."""
    return (folder / JOURNAL).exists() and Journal(folder).last("finished") is not None


def drop_single_packs(folder: Path) -> None:
    """Remove the packs of single edits from a finished run; its one pack has all that was in them."""
    shutil.rmtree(folder / EDITS, ignore_errors=True)

"""`editlab edit`: write facts into a model, show what changed, and keep a run folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from editlab.cli.console import Output, read_facts, settle_prefixes
from editlab.cli.options import Checkpoint, SkipMalformed, TargetPrefix, new_folder, spread
from editlab.errors import ConfigError, Interrupted

if TYPE_CHECKING:
    from editlab.facts import Fact
    from editlab.lm import LM
    from editlab.report import EditReport
    from editlab.runs import FailedRow, Plan

PLAN_KEYS = {"method", "mode", "batch_size", "settings", "stop"}  # of `editlab.runs.Plan`
ROUTED = 5  # facts whose prompts are asked of side memories, there
SHOWN = 20  # facts of a run with many, in the terminal


def edit(
    out: Output,
    checkpoint: Checkpoint,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[SETTING=VALUE]...", help="Settings of the method.")
    ] = None,
    method: Annotated[str | None, typer.Option("--method", help="See 'editlab ls methods'; rome.")] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help='Text with {} for the subject: "The capital of {} is".')
    ] = None,
    subject: Annotated[str | None, typer.Option("--subject", help="What the fact is about.")] = None,
    target: Annotated[str | None, typer.Option("--target", help="The new answer.")] = None,
    true: Annotated[str | None, typer.Option("--true", help="The present answer, to show its probability.")] = None,
    paraphrase: Annotated[
        list[str] | None, typer.Option("--paraphrase", help="Another way to ask; repeatable.")
    ] = None,
    neighbour: Annotated[
        list[str] | None, typer.Option("--neighbour", help="A prompt that must keep its answer; repeatable.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", help="Facts, one JSON object a line.")] = None,
    skip_malformed: SkipMalformed = False,
    target_prefix: TargetPrefix = None,
    mode: Annotated[
        str | None,
        typer.Option(
            "--mode",
            help="With --file: single (undo each; the default), batch (one edit), sequential, sequential-batched.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Facts of one edit in mode sequential-batched; 16.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="YAML: settings of the method, or a plan (a run's config.yaml is one)."),
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(
            "--stop", metavar="RULE=X", help="End when max_kl, max_perplexity or max_norm is passed; repeatable."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Time the first facts, estimate time, memory and disk, write nothing.")
    ] = False,
    layer: Annotated[int | None, typer.Option("--layer", help="Layer to edit; default by model.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Where random choices start from.")] = None,
    run: Annotated[Path | None, new_folder("Run folder; default runs/TIME-edit-HASH.")] = None,
) -> None:
    """Edit one fact (--prompt, --subject, --target) or a file of them, and show before and after."""
    from editlab import registry
    from editlab.config import build, load_yaml, parse_overrides

    # All that can be wrong without the model is found before it is loaded.
    given = load_yaml(config) if config else {}
    is_plan = bool(given.keys() & PLAN_KEYS)
    plan: dict[str, Any] = dict(given) if is_plan else {"settings": given}
    of_plan = plan.pop("model", None)
    plan |= {k: v for k, v in (("method", method), ("mode", mode), ("batch_size", batch_size)) if v is not None}
    settings = {**plan.get("settings", {}), **parse_overrides(overrides or [])}
    settings |= {k: v for k, v in (("layer", layer), ("seed", seed)) if v is not None}
    plan["settings"] = settings
    if stop:
        plan["stop"] = {**plan.get("stop", {}), **parse_overrides(stop)}
    method = str(plan.get("method", "rome"))
    build(registry.get(method).Config, settings, f"method '{method}'")
    if file is None:
        facts = [_one_fact(prompt, subject, target, true, paraphrase, neighbour, target_prefix)]
    elif prompt or subject or target or true or paraphrase or neighbour:
        raise ConfigError("--file and the options of a single fact exclude each other.", "Give one of them.")
    else:
        facts = read_facts(out, file, skip_malformed, target_prefix)
    from editlab.runs import Plan, run_folder

    batch = build(Plan, plan, "the run")
    lm = checkpoint.open(out.on_step, of_plan)
    if settings.get("layer") is not None:
        lm.adapter.check_layer(int(settings["layer"]))
    if file is not None:
        facts = settle_prefixes(out, lm, facts, file)
    if dry_run:
        _estimate(out, lm, facts, batch)
        return
    folder = run or run_folder("edit", lm.base_hash)
    if file is None:
        _edit_one(out, lm, facts[0], method, settings, folder)
    else:
        from editlab.runs import run_batch

        with interruptible(folder):
            result = run_batch(lm, facts, batch, folder, out.on_step)
        finish(out, lm, method, folder, list(result.reports), list(result.failed), result.stopped)


def register(app: typer.Typer) -> None:
    app.command()(spread(edit))


@contextmanager
def interruptible(folder: Path) -> Iterator[None]:
    """Ctrl-C, or a full disk, ends a run with the command that goes on with it, if there is something to go on with."""
    from editlab.errors import PackError, WriteFailed
    from editlab.runs.journal import NAME as JOURNAL

    try:
        yield
    except KeyboardInterrupt:
        fix = f"Go on with: editlab resume {folder}" if (folder / JOURNAL).exists() else ""
        raise Interrupted("Interrupted; what is done is kept." if fix else "Interrupted.", fix) from None
    except (PackError, WriteFailed) as error:
        if (folder / JOURNAL).exists():
            error.fix += f" Then go on with: editlab resume {folder}"
        raise


def _one_fact(
    prompt: str | None,
    subject: str | None,
    target: str | None,
    true: str | None,
    paraphrases: list[str] | None,
    neighbours: list[str] | None,
    target_prefix: str | None,
) -> Fact:
    from editlab.data.formats import read_fact

    needed = [("--prompt", prompt), ("--target", target)]
    # Without a placeholder the prompt may be all there is to the fact.
    needed[1:1] = [("--subject", subject)] if prompt is None or "{}" in prompt else []
    missing = [n for n, v in needed if v is None]
    if missing:
        raise ConfigError(f"{', '.join(missing)} missing.", "Give --prompt, --subject and --target, or --file.")
    row = {
        "prompt": prompt,
        "subject": subject,
        "target_new": target,
        "target_true": true,
        "paraphrases": paraphrases or [],
        "neighbours": neighbours or [],
        "target_prefix": target_prefix or "auto",
    }
    return read_fact(row)


def _estimate(out: Output, lm: LM, facts: list[Fact], plan: Plan) -> None:
    from editlab.runs import estimate

    found = estimate(lm, facts, plan, out.on_step)
    out.result({"dry_run": True, **asdict(found)}, found.text)


def _edit_one(out: Output, lm: LM, fact: Fact, method: str, settings: dict[str, Any], folder: Path) -> None:
    from editlab.runs import edit_and_measure, write_run

    report = edit_and_measure(lm, fact, method, settings, out.on_step)
    config = {"method": method, "settings": report.entry.edit.config, "model": lm.name}
    write_run(folder, lm, "edit", config, [report])
    finish(out, lm, method, folder, [report], [], is_one=True)


def finish(
    out: Output,
    lm: LM,
    method: str,
    folder: Path,
    reports: list[EditReport],
    failed: list[FailedRow],
    stopped: str = "",
    *,
    is_one: bool = False,
) -> None:
    """Show what a run gave, and end with the exit code that says so."""
    from editlab.report import overview

    # One edit may have written many facts.
    of_edit = {report.entry.id: report for report in reversed(reports)}
    entries = [of_edit[id].entry for id in reversed(of_edit)]
    for entry in entries:
        for warning in entry.edit.info.get("warnings", []):
            out.warn(f"{of_edit[entry.id].fact.label}: {warning}.")
    for report in reports if len(reports) == 1 else ():
        out.show(report.table())
    if len(reports) > 1:
        out.show(overview(reports[:SHOWN]))
    routing = lm.route([row.prompt for report in reports[:ROUTED] for row in report.rows])
    if routing.routes:
        out.show(routing.table())
    fired = sum(r.fires for r in reports)
    if is_one:
        text = f"{reports[0].headline}\n{_what_changed(reports[0].entry)}"
    else:
        text = f"{len(reports) - SHOWN} more are in {folder / 'results.parquet'}.\n" if len(reports) > SHOWN else ""
        text += _in_sum(reports, failed)
        if stopped:
            text += f"\nStopped {stopped}."
    data = {
        "run": str(folder),
        "method": method,
        "facts": len(reports),
        "fired": fired,
        "failed": [{"fact": f.fact, "reason": f.reason} for f in failed],
        "stopped": stopped or None,
        "state_hash": lm.state_hash,
        "edits": [
            {
                "id": entry.id,
                "seconds": sum(r.seconds for r in reports if r.entry.id == entry.id),
                "fires": all(r.fires for r in reports if r.entry.id == entry.id),
                "info": entry.edit.info,
            }
            for entry in entries
        ],
        "prompts": [record for r in reports for record in r.to_records()],
        "routing": [asdict(route) for route in routing.routes],
    }
    undo = f"   (undo: editlab undo {folder})" if lm.ledger.active else ""
    out.result(data, f"{text}\nRun: {folder}{undo}")
    if stopped:
        raise typer.Exit(4)
    if failed:
        raise typer.Exit(5)


def _in_sum(reports: list[EditReport], failed: list[FailedRow]) -> str:
    """What became of all facts, in a sentence, and why some could not be edited."""
    of_kind = {
        "paraphrases follow": [r.followed for r in reports],
        "neighbours changed": [r.disturbed for r in reports],
        "prompts apart changed, which cannot show damage": [r.apart for r in reports],
    }
    parts = [f"{sum(r.fires for r in reports)} of {len(reports)} facts are answered with the new target"]
    for what, counts in of_kind.items():
        asked = sum(n for _, n in counts)
        parts += [f"{sum(k for k, _ in counts)} of {asked} {what}"] if asked else []
    parts.append(f"{len(failed)} row{'' if len(failed) == 1 else 's'} failed")
    return "; ".join(parts) + "." + "".join(f"\n  {f.fact}: {f.reason}" for f in failed)


def _what_changed(entry: Any) -> str:
    info = entry.edit.info
    if entry.edit.routing is not None:
        return f"Edit {entry.id}: {info['parameter']}; no weight changed."
    noticed = f"; on ordinary text its output moves by {info['disturbance']:.1%}" if "disturbance" in info else ""
    return (
        f"Edit {entry.id}: {info['parameter']} changed by a rank-{info['rank']} update, "
        f"{info['relative_norm']:.1%} of its norm{noticed}."
    )

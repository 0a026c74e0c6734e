"""`editlab eval`: what a run's or a pack's edits did, in numbers that carry their definition."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from editlab.cli.console import Output, read_facts, settle_prefixes
from editlab.cli.options import Checkpoint, TargetPrefix, new_folder, spread

if TYPE_CHECKING:
    from editlab.evaluation.results import Evaluation

FAILED_THRESHOLD = 4


def evaluate(
    out: Output,
    checkpoint: Checkpoint,
    pack: Annotated[Path, typer.Argument(metavar="RUN_OR_PACK", help="Run or pack folder.")],
    suite: Annotated[
        Path | None,
        typer.Option("--suite", help="Facts file, or .yaml settings. The run's own facts if left out."),
    ] = None,
    metric: Annotated[list[str] | None, typer.Option("--metric", help="See 'editlab ls metrics'; repeatable.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N facts.")] = None,
    skip_malformed: Annotated[
        bool | None, typer.Option("--skip-malformed", help="Report malformed rows and go on without them.")
    ] = None,
    target_prefix: TargetPrefix = None,
    along: Annotated[
        bool | None, typer.Option("--along", help="Also score all facts after 1, 2, 5, 10, ... edits.")
    ] = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option("--fail-under", metavar="METRIC=VALUE", help="Exit 4 below; repeatable."),
    ] = None,
    fail_over: Annotated[
        list[str] | None, typer.Option("--fail-over", metavar="METRIC=VALUE", help="Exit 4 above; repeatable.")
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option("--mode", help="together (as the edits stand) or single (each fact under its own edit)."),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of intervals and sampled texts.")] = None,
    folder: Annotated[Path | None, new_folder("Folder for the results; default runs/TIME-eval-HASH.")] = None,
) -> None:
    """Measure efficacy, paraphrase, locality, free answers, negation and drift, beside the unedited model."""
    from editlab.config import parse_overrides
    from editlab.evaluation.suite import read_suite
    from editlab.runs import run_folder, write_evaluation
    from editlab.runs.records import recorded_mode
    from editlab.state.packs import read_pack

    settings = read_suite(
        suite,
        metrics=metric or None,
        limit=limit,
        skip_malformed=skip_malformed,
        along=along,
        seed=seed,
        fail_under=parse_overrides(fail_under) if fail_under else None,
        fail_over=parse_overrides(fail_over) if fail_over else None,
    )
    opened = read_pack(pack)
    facts = None
    if settings.facts is not None:
        facts = read_facts(out, settings.facts, settings.skip_malformed, target_prefix)

    from editlab.evaluation.evaluate import evaluate as measure

    lm = checkpoint.open(out.on_step, opened.base_name)
    lm.load_edits(pack)
    if facts is not None and settings.facts is not None:
        facts = settle_prefixes(out, lm, facts, settings.facts)
    found = measure(lm, facts, settings, mode=mode or recorded_mode(pack), on_step=out.on_step)
    if not found.settings["n_edited"]:
        out.warn("None of these facts was written by these edits: everything here is side effect.")
    config = {"pack": str(pack), **settings.model_dump(mode="json")}
    folder = write_evaluation(folder or run_folder("eval", lm.base_hash), lm, found, config)
    show(out, found)
    failures = failed_thresholds(found)
    text = "".join(f"\nFAILED: {failure}" for failure in failures)
    out.result(
        {"folder": str(folder), "pack": str(pack), **found.to_json(), "failed": failures},
        f"Results: {folder}{text}",
    )
    if failures:
        raise typer.Exit(FAILED_THRESHOLD)


def register(app: typer.Typer) -> None:
    app.command("eval")(spread(evaluate))


def show(out: Output, found: Evaluation) -> None:
    """The summary and, where facts were scored along a sequence, what was kept of them."""
    out.show(found.table())
    if found.matrix is not None:
        from editlab.evaluation.sequence import retention

        out.show(retention(found.matrix))


def failed_thresholds(found: Evaluation) -> list[str]:
    """Every threshold of the suite that the edited model misses, in words; NaN misses all of them."""
    suite = found.settings["suite"]
    failures = []
    for limits, word, sign in ((suite["fail_under"], "under", 1), (suite["fail_over"], "over", -1)):
        for name, limit in limits.items():
            value = found[name].edited.mean
            if not sign * value >= sign * limit:
                failures.append(f"{name} is {value:.4g}, {word} {limit:g}")
    return failures

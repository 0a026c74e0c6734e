"""`editlab edit`: write facts into a model, show what changed, and keep a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from editlab.cli import options
from editlab.cli.console import Output, read_facts
from editlab.errors import ConfigError

if TYPE_CHECKING:
    from editlab.facts import Fact
    from editlab.lm import LM
    from editlab.runs import FailedRow


def register(app: typer.Typer) -> None:
    @app.command()
    def edit(
        overrides: Annotated[
            list[str] | None, typer.Argument(metavar="[SETTING=VALUE]...", help="Settings of the method.")
        ] = None,
        method: Annotated[str, typer.Option("--method", help="See 'editlab ls methods'.")] = "rome",
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
        skip_malformed: Annotated[
            bool, typer.Option("--skip-malformed", help="With --file: report malformed rows and go on without them.")
        ] = False,
        mode: Annotated[
            str, typer.Option("--mode", help="With --file: single (undo each) or sequential (keep all).")
        ] = "single",
        config: Annotated[Path | None, typer.Option("--config", help="YAML file with settings of the method.")] = None,
        layer: Annotated[int | None, typer.Option("--layer", help="Layer to edit; default by model.")] = None,
        seed: Annotated[int | None, typer.Option("--seed", help="Where random choices start from.")] = None,
        model: options.Model = None,
        dtype: options.Dtype = "float32",
        device: options.Device = "cpu",
        threads: options.Threads = None,
        run: Annotated[
            Path | None, typer.Option("--out", "-o", help="Run folder; default runs/TIME-edit-HASH.")
        ] = None,
        as_json: options.Json = False,
        quiet: options.Quiet = False,
    ) -> None:
        """Edit one fact (--prompt, --subject, --target) or a file of them, and show before and after."""
        from editlab import registry
        from editlab.config import build, load_yaml, parse_overrides

        with Output(as_json=as_json, quiet=quiet) as out:
            settings: dict[str, Any] = {**(load_yaml(config) if config else {}), **parse_overrides(overrides or [])}
            settings |= {k: v for k, v in (("layer", layer), ("seed", seed)) if v is not None}
            # All that can be wrong without the model is found before it is loaded.
            build(registry.get(method).Config, settings, f"method '{method}'")
            if file is None:
                facts = [_one_fact(prompt, subject, target, true, paraphrase, neighbour)]
            elif prompt or subject or target or true or paraphrase or neighbour:
                raise ConfigError("--file and the options of a single fact exclude each other.", "Give one of them.")
            else:
                facts = read_facts(out, file, skip_malformed)
            if mode not in ("single", "sequential"):
                raise ConfigError(f"Mode '{mode}' is not known.", "Use single or sequential.")
            if run is not None:
                from editlab.runs import check_free

                check_free(run)

            from editlab.lm import LM

            lm = LM.from_pretrained(model, dtype=dtype, device=device, on_step=out.on_step)
            if settings.get("layer") is not None:
                lm.adapter.check_layer(int(settings["layer"]))
            _edit(out, lm, facts, method, settings, mode if file else None, run)


def _one_fact(
    prompt: str | None,
    subject: str | None,
    target: str | None,
    true: str | None,
    paraphrases: list[str] | None,
    neighbours: list[str] | None,
) -> Fact:
    from editlab.data.formats import read_fact

    missing = [n for n, v in (("--prompt", prompt), ("--subject", subject), ("--target", target)) if v is None]
    if missing:
        raise ConfigError(f"{', '.join(missing)} missing.", "Give --prompt, --subject and --target, or --file.")
    row = {
        "prompt": prompt,
        "subject": subject,
        "target_new": target,
        "target_true": true,
        "paraphrases": paraphrases or [],
        "neighbours": neighbours or [],
    }
    return read_fact(row)


def _edit(
    out: Output, lm: LM, facts: list[Fact], method: str, settings: dict[str, Any], mode: str | None, run: Path | None
) -> None:
    from editlab.runs import edit_and_measure, edit_many, run_folder, write_run

    failed: list[FailedRow] = []
    if mode is None:
        reports = [edit_and_measure(lm, facts[0], method, settings, out.on_step)]
    else:
        reports, failed = edit_many(lm, facts, method, settings, mode, out.on_step)  # type: ignore[arg-type]
    folder = run or run_folder("edit", lm.base_hash)
    used = reports[0].entry.edit.config if reports else settings
    write_run(folder, lm, "edit", {"method": method, "mode": mode or "one", "settings": used}, reports, failed)
    for report in reports:
        for warning in report.entry.edit.info.get("warnings", []):
            out.warn(f"{report.fact.subject}: {warning}.")
    for report in reports[:5]:
        out.show(report.table())
    n = len(reports)
    fired = sum(r.fires for r in reports)
    if mode is None:
        text = f"{reports[0].headline}\n{_what_changed(reports[0].entry)}"
    else:
        text = f"{fired} of {n} facts are answered with the new target; {len(failed)} rows failed."
        text += "".join(f"\n  {f.fact}: {f.reason}" for f in failed)
    data = {
        "run": str(folder),
        "method": method,
        "facts": n,
        "fired": fired,
        "failed": [{"fact": f.fact, "reason": f.reason} for f in failed],
        "edits": [
            {"id": r.entry.id, "seconds": r.seconds, "fires": r.fires, "info": r.entry.edit.info} for r in reports
        ],
        "prompts": [record for r in reports for record in r.to_records()],
    }
    undo = f"   (undo: editlab undo {folder})" if lm.ledger.active else ""
    out.result(data, f"{text}\nRun: {folder}{undo}")
    if failed:
        raise typer.Exit(5)


def _what_changed(entry: Any) -> str:
    info = entry.edit.info
    return (
        f"Edit {entry.id}: {info['parameter']} changed by a rank-{info['rank']} update, "
        f"{info['relative_norm']:.1%} of its norm."
    )

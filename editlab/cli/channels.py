"""`editlab channels`: scan weights for channels between heads, look at one, test it, edit it, steer with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from editlab.cli.console import Output
from editlab.cli.options import EditedCheckpoint, Seed, new_folder, spread
from editlab.display import text_table
from editlab.errors import ConfigError
from editlab.jsonable import records

if TYPE_CHECKING:
    import pandas as pd

    from editlab.lm import LM
    from editlab.probes.channels.scan import Scan

Run = Annotated[Path | None, new_folder("Run folder; default runs/TIME-channels-HASH.")]
ModeOption = Annotated[str, typer.Option("--mode", help="How the reader reads: q, k, v, or all.")]
SCORES = ["source", "target", "mode", "score", "rank", "z", "p", "q", "rank1_share", "outlier"]
NOTE = "Scores are of weights alone: a channel is a hypothesis until 'editlab channels test' has intervened."


def scan(
    out: Output,
    checkpoint: EditedCheckpoint,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[SETTING=VALUE]...", help="Settings: delta, top, p, rank.")
    ] = None,
    mode: ModeOption = "all",
    level: Annotated[str, typer.Option("--level", help="head, component or pair (of components).")] = "component",
    target: Annotated[str | None, typer.Option("--target", help="Only this reader, LAYER.HEAD.")] = None,
    source: Annotated[str | None, typer.Option("--source", help="Only this writer.")] = None,
    top: Annotated[int, typer.Option("--rows", min=1, help="Rows to show.")] = 20,
    run: Run = None,
) -> None:
    """Score all pairs of heads and components; the best, with their null."""
    from editlab.config import build, parse_overrides
    from editlab.probes.channels.parts import Part
    from editlab.probes.channels.scan import LEVELS, Config
    from editlab.probes.channels.scan import scan as scan_model
    from editlab.runs.channels import write_scan

    config = build(Config, {**parse_overrides(overrides or []), "modes": _modes(mode)}, "the scan")
    if level not in LEVELS:
        raise ConfigError(f"There is no level '{level}'.", f"Choose one of {', '.join(LEVELS)}.")
    only = {name: Part.parse(text) for name, text in (("target", target), ("source", source)) if text}
    lm = checkpoint.open(out.on_step)
    found = scan_model(lm, config, out.on_step)
    rows = found.to_pandas(level, limit=top, **only)  # type: ignore[arg-type]
    out.show(_table(rows, SCORES))
    every = found.to_pandas(level, limit=None, **only)  # type: ignore[arg-type]
    _end(out, write_scan(_folder(run, lm), lm, found, every), found, rows, NOTE)


def show(
    out: Output,
    checkpoint: EditedCheckpoint,
    part: Annotated[
        str | None, typer.Argument(metavar="[PART]", help="LAYER.HEAD or LAYER.HEAD.COMPONENT; none: head roles.")
    ] = None,
    target: Annotated[str | None, typer.Option("--target", help="What it sends to this reader.")] = None,
    mode: ModeOption = "q",
    top: Annotated[int, typer.Option("--rows", min=1, help="Rows to show.")] = 10,
    seed: Seed = 0,
) -> None:
    """One head or component: spectrum, tokens in and out, readers. Without one: the roles of all heads."""
    from editlab.probes.channels.parts import Part

    wanted = None if part is None else Part.parse(part)
    reader = None if target is None else Part.parse(target)
    modes = _modes(mode)
    lm = checkpoint.open(out.on_step)
    if wanted is None:
        _show_roles(out, lm, seed, top)
    else:
        _show_part(out, lm, wanted, reader, modes, top)


def test_(
    out: Output,
    checkpoint: EditedCheckpoint,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="LAYER.HEAD.COMPONENT, or LAYER.HEAD.")],
    targets: Annotated[list[str], typer.Argument(metavar="TARGET...", help="Readers, LAYER.HEAD.")],
    mode: Annotated[str, typer.Option("--mode", help="How the readers read: q, k or v.")] = "q",
    task: Annotated[str, typer.Option("--task", help="ioi (two names), repeats, or lists.")] = "ioi",
    prompts: Annotated[int, typer.Option("--prompts", min=8, help="How many.")] = 200,
    length: Annotated[int, typer.Option("--length", min=2, help="With --task lists: items.")] = 4,
    controls: Annotated[int, typer.Option("--controls", min=20, help="Matched random controls.")] = 24,
    passages: Annotated[int, typer.Option("--passages", min=0, help="Prose for perplexity; 0: none.")] = 6,
    seed: Seed = 0,
    run: Run = None,
) -> None:
    """Cut a channel and remove its source, beside controls: does it do anything?"""
    from editlab.config import build
    from editlab.probes.channels import causal
    from editlab.probes.channels.parts import Channel, Part
    from editlab.probes.channels.scan import Config
    from editlab.probes.channels.scan import scan as scan_model
    from editlab.probes.channels.tasks import TASKS, prompts_of
    from editlab.runs.channels import write_verdicts

    if mode not in ("q", "k", "v") or task not in TASKS:
        raise ConfigError(
            f"There is no mode '{mode}' or no task '{task}'.",
            f"Modes are q, k, v; tasks {', '.join(TASKS)}.",
        )
    channels = [Channel(Part.parse(source), Part.parse(t).whole, mode) for t in targets]  # type: ignore[arg-type]
    asked = {"controls": controls, "passages": passages, "seed": seed}
    config = build(causal.Config, asked, "the test")
    lm = checkpoint.open(out.on_step)
    for channel in channels:
        for p in (channel.source, channel.target):
            p.check(lm.adapter.n_layers, lm.adapter.n_heads, lm.adapter.head_dim)
    made = prompts_of(lm, task, prompts, length=length, seed=seed)
    weights = scan_model(lm, build(Config, {"modes": (mode,)}, "the scan"), out.on_step)
    found = causal.verify(lm, channels, made, weights, config, out.on_step, task=TASKS[task])
    rows = found.to_pandas()
    shown = rows.assign(
        edge=[f"{e:+.3f} ({a:+.3f} to {b:+.3f})" for e, a, b in _three(rows, "edge")],
        node=[f"{e:+.3f} ({a:+.3f} to {b:+.3f})" for e, a, b in _three(rows, "node")],
    )
    columns = ["source", "target", "mode", "status", "edge_base", "edge", "edge_controls95", "node", "n", "why"]
    out.show(_table(shown, columns))
    given = {"task": task, "prompts": prompts, "length": length}
    _end(out, write_verdicts(_folder(run, lm), lm, found, given), found, rows)


def edit(
    out: Output,
    checkpoint: EditedCheckpoint,
    parts: Annotated[list[str], typer.Argument(metavar="PART...", help="Components, LAYER.HEAD.COMPONENT.")],
    scale: Annotated[float, typer.Option("--scale", min=-10, max=10, help="0 removes, 1 leaves alone.")] = 0.0,
    side: Annotated[str, typer.Option("--side", help="ov: what is written; qk: what queries read.")] = "ov",
    run: Run = None,
) -> None:
    """Scale components in the weights: an edit like any other, to undo, apply or export."""
    from editlab.probes.channels.components import component_edit
    from editlab.probes.channels.parts import Part

    wanted = [Part.parse(text) for text in parts]
    if side not in ("ov", "qk"):
        raise ConfigError(f"There is no side '{side}'.", "Choose ov or qk.")
    lm = checkpoint.open(out.on_step)
    from editlab.runs import write_run

    entry = lm.ledger.apply(component_edit(lm, wanted, scale, side))  # type: ignore[arg-type]
    folder = _folder(run, lm)
    headline = entry.edit.summary
    write_run(folder, lm, "channels", {"model": lm.name, **entry.edit.config}, [], extra={"headline": headline})
    norm = entry.to_record()["norm"]
    out.result(
        {"run": str(folder), "headline": headline, "id": entry.id, "norm": norm},
        f"{headline}; norm of the change {norm:.4g}.\nTry it: editlab generate --edits {folder}\n"
        f"Undo it: editlab undo {folder}\nRun: {folder}",
    )


def steer(
    out: Output,
    checkpoint: EditedCheckpoint,
    parts: Annotated[
        list[str],
        typer.Argument(
            metavar="PART... [SETTING=VALUE]...",
            help="Components; then settings: length, dev, test, samples, controls, spaces, seed.",
        ),
    ],
    run: Run = None,
) -> None:
    """Steer list recall: components scaled, and set by place; chosen on some prompts, judged on others."""
    from editlab.config import build, parse_overrides
    from editlab.probes.channels.parts import Part
    from editlab.probes.channels.steering import Config, steering
    from editlab.runs.channels import write_steering

    given = [text for text in parts if "=" in text]
    wanted = [Part.parse(text) for text in parts if "=" not in text]
    config = build(Config, parse_overrides(given), "steering")
    lm = checkpoint.open(out.on_step)
    for part in wanted:
        part.check(lm.adapter.n_layers, lm.adapter.n_heads, lm.adapter.head_dim)
    found = steering(lm, wanted, config, out.on_step)
    rows = found.to_pandas()
    out.show(_table(rows, [str(name) for name in rows]))
    _end(out, write_steering(_folder(run, lm), lm, found, wanted, config), found, rows)


def register(app: typer.Typer) -> None:
    group = typer.Typer(
        no_args_is_help=True, help="Low-rank channels between attention heads: scan, show, test, edit, steer."
    )
    app.add_typer(group, name="channels")
    group.command()(spread(scan))
    group.command()(spread(show))
    group.command("test")(spread(test_))
    group.command()(spread(edit))
    group.command()(spread(steer))


def _modes(mode: str) -> tuple[str, ...]:
    if mode == "all":
        return ("q", "k", "v")
    if mode not in ("q", "k", "v"):
        raise ConfigError(f"There is no mode '{mode}'.", "Choose q, k, v or all.")
    return (mode,)


def _folder(run: Path | None, lm: LM) -> Path:
    from editlab.runs import run_folder

    return run or run_folder("channels", lm.base_hash)


def _end(out: Output, folder: Path, found: Any, rows: pd.DataFrame, note: str = "") -> None:
    """Say what came out, and where it is."""
    said = "\n".join(line for line in (found.headline, note, f"Run: {folder}") if line)
    out.result({"run": str(folder), "headline": found.headline, "rows": records(rows)}, said)


def _show_roles(out: Output, lm: LM, seed: int, top: int) -> None:
    from editlab.config import build
    from editlab.probes.channels.roles import Config, head_roles

    found = head_roles(lm, build(Config, {"seed": seed}, "the roles"), out.on_step)
    rows = found.to_pandas(limit=top)
    out.show(_table(rows, ["role", "head", "score", "low", "high", "n", "has_role"]))
    out.result({"headline": found.headline, "rows": records(rows)}, found.headline)


def _show_part(out: Output, lm: LM, part: Any, target: Any, modes: tuple[str, ...], top: int) -> None:
    from editlab.config import build
    from editlab.probes.channels.composition import component_scores
    from editlab.probes.channels.pairs import pair_svd
    from editlab.probes.channels.readout import LABEL, read_out
    from editlab.probes.channels.scan import Config
    from editlab.probes.channels.scan import scan as scan_model

    part.check(lm.adapter.n_layers, lm.adapter.n_heads, lm.adapter.head_dim)
    found: Scan = scan_model(lm, build(Config, {"modes": modes, "top": 4096}, "the scan"), out.on_step)
    f, index = found.factors, found.factors.index(part)
    energy = f.energy[index].tolist()
    spectrum = [
        {"component": i, "singular_value": float(f.s[index, i]), "share": energy[i]}
        | {"degenerate": bool(f.degenerate_ov[index, i])}
        for i in range(min(top, f.width))
    ]
    data: dict[str, Any] = {"part": str(part), "spectrum": spectrum}
    lines = [f"Head {part.whole}: its first {len(spectrum)} of {f.width} components, share of what it writes"]
    lines.append(", ".join(f".{row['component']} {row['share']:.1%}" for row in spectrum))
    if target is not None:
        reader = f.index(target)
        pairs = []
        for mode in found.compositions:
            svd = pair_svd(f, mode, index, reader)
            scores = component_scores([f], mode, index, reader)
            best = int(scores.argmax())
            p = found.null(mode, "strongest").p(scores.max())
            pairs.append(
                {"mode": mode, "score": svd.score, "rank1_share": svd.rank1_share, "participation": svd.participation}
                | {"best_component": best, "component_score": float(scores[best]), "p": float(p)}
            )
        data["pairs"] = pairs
        out.show(text_table(list(pairs[0]), [[_cell(v) for v in row.values()] for row in pairs]))
    else:
        rows = found.to_pandas("component" if part.component is not None else "head", source=part, limit=top)
        data["readers"] = records(rows)
        out.show(_table(rows, SCORES))
    if part.component is not None:
        words = read_out(lm, f, part, top)
        data["tokens"] = {side: [token for token, _ in pairs_] for side, pairs_ in words.tokens.items()}
        lines += [f"Tokens ({LABEL}):"]
        lines += [f"  {side}: {' '.join(repr(t) for t in tokens)}" for side, tokens in data["tokens"].items()]
    out.result(data, "\n".join([*lines, NOTE]))


def _three(rows: pd.DataFrame, name: str) -> list[tuple[float, float, float]]:
    return list(zip(rows[name], rows[f"{name}_low"], rows[f"{name}_high"], strict=True))


def _table(rows: pd.DataFrame, columns: list[str]) -> str:
    return text_table(columns, [[_cell(value) for value in row] for row in rows[columns].itertuples(index=False)])


def _cell(value: Any) -> object:
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3f}"
    return value

"""`editlab conflicts`: memory against context, the heads that decide, pruning them, and what else turns the balance."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from editlab.cli.conflict_work import EVIDENCE, RATES, Conflict, Work, is_conflictqa, score_columns, shown
from editlab.cli.console import Output
from editlab.cli.options import EditedCheckpoint, new_folder, spread
from editlab.errors import ConfigError
from editlab.jsonable import records

OfRelation = Annotated[str, typer.Option("--relation", help="See 'editlab ls relations'.")]
Towards = Annotated[str, typer.Option("--to", help="Where answers shall come from: memory or context.")]
Run = Annotated[Path | None, new_folder("Run folder; default runs/TIME-conflicts-HASH.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[SETTING=VALUE]...", help="Further settings, as in controls=5.")
]


def probe(
    out: Output,
    checkpoint: EditedCheckpoint,
    conflict: Conflict,
    relation: Annotated[
        str, typer.Argument(metavar="RELATION", help="See 'editlab ls relations'; 'file' with --file.")
    ] = "capital",
    formats: Annotated[str, typer.Option("--formats", help="Further formats, with commas, or 'all'.")] = "",
    evidence: Annotated[
        bool, typer.Option("--evidence", help="Also weigh kinds of evidence; --file may be a conflictQA file.")
    ] = False,
    flow: Annotated[
        bool, typer.Option("--flow", help="Also knock layers out, cut attention, read the stream.")
    ] = False,
    run: Run = None,
) -> None:
    """What the model answers when its context contradicts what it knows."""
    from editlab.data.conflicts import FORMATS, check_format

    more = FORMATS if formats == "all" else [check_format(f.strip()) for f in formats.split(",") if f.strip()]
    asked = conflict.asked("probe", relation) | {"formats": list(more)}
    work = Work(out, checkpoint.open(out.on_step), run, asked)
    if evidence and conflict.file is not None and is_conflictqa(conflict.file):
        from editlab.data.conflicts.evidence import questions_of_file
        from editlab.probes.conflicts.evidence import evidence_preference

        weighed = evidence_preference(
            work.lm, questions_of_file(conflict.file)[: conflict.subjects], on_step=out.on_step
        )
        work.end(weighed.headline, weighed.to_pandas(), {}, {"file": str(conflict.file)}, EVIDENCE)
        return
    from editlab.probes.conflicts.behaviour import probe as ask

    found = ask(work.lm, conflict.cases(out, work.lm, relation), conflict.settings(), formats=more, on_step=out.on_step)
    rows = found.to_pandas()
    out.show(shown(rows, RATES))
    extra: dict[str, Any] = {"items": found.items.headline, "rejected": found.items.rejected}
    if found.popularity is not None:
        extra["popularity"] = {"r": found.popularity.r, "p": found.popularity.p, "n": found.popularity.n}
    if evidence:
        from editlab.probes.conflicts.evidence import evidence_preference, questions_of_items

        weighed = evidence_preference(work.lm, questions_of_items(found.items), on_step=out.on_step)
        out.show(shown(weighed.to_pandas(), EVIDENCE))
        extra["evidence"] = {"headline": weighed.headline, "rows": records(weighed.to_pandas())}
    figures: dict[str, Any] = {"shares": found}
    if flow:
        from editlab.probes.conflicts.flow import flow as localise

        flowing = localise(work.lm, found.items.split("discovery"), on_step=out.on_step)
        extra["flow"] = {"headline": flowing.headline, "rows": records(flowing.to_pandas())}
        figures["flow"] = flowing
        out.say(flowing.headline)
    work.end(f"{found.items.headline} {found.headline}", rows, figures, extra)


def heads(
    out: Output,
    checkpoint: EditedCheckpoint,
    conflict: Conflict,
    overrides: Overrides = None,
    relation: OfRelation = "capital",
    estimand: Annotated[str, typer.Option("--estimand", help="path, direct, total or gradient.")] = "path",
    all_subjects: Annotated[
        bool, typer.Option("--all-subjects", help="Use every subject, not the discovery split alone.")
    ] = False,
    run: Run = None,
) -> None:
    """Which attention heads push memory's answer, and which the context's: exact path patching of every head."""
    from editlab.config import build, parse_overrides
    from editlab.probes.conflicts.heads import HeadSettings, map_heads

    settings = build(HeadSettings, {**parse_overrides(overrides or []), "estimand": estimand}, "the scores")
    # Apart: both the items and their scores have 'draws'.
    asked = conflict.asked("heads", relation) | {"scores": settings.model_dump(mode="json")}
    work = Work(out, checkpoint.open(out.on_step), run, asked)
    items = work.items(conflict, relation)
    found = map_heads(work.lm, items if all_subjects else items.split("discovery"), settings, on_step=out.on_step)
    rows = found.to_pandas()
    out.show(shown(rows.head(16), ("head", "kv_group", "score", "error", "q", "named", "role", *score_columns(rows))))
    if found.missed is not None:
        out.say(f"Patched after a gradient pass; the largest |S| of spot checks besides: {found.missed:.3f}.")
    if not found.reliability > 0.8:
        out.warn(f"Split-half reliability is {found.reliability:.2f}: use more subjects.")
    work.end(found.headline, rows, {"heads": found}, {"items": items.headline, "rejected": items.rejected})


def prune(
    out: Output,
    checkpoint: EditedCheckpoint,
    conflict: Conflict,
    overrides: Overrides = None,
    relation: OfRelation = "capital",
    to: Towards = "context",
    transfer: Annotated[
        str, typer.Option("--transfer", help="Also measure on these relations or formats, with commas.")
    ] = "",
    keep: Annotated[
        str,
        typer.Option("--keep", help="Keep it as an edit of the run: best, safe, or heads as in '23.4, 24.1'."),
    ] = "",
    run: Run = None,
) -> None:
    """Prune heads to turn answers to memory or to the context, with controls; --keep makes it an edit."""
    from editlab.config import build, parse_overrides
    from editlab.hooks.heads import head_name, read_heads
    from editlab.probes.conflicts.heads import map_heads
    from editlab.probes.conflicts.prune import PruneSettings, means_of
    from editlab.probes.conflicts.prune import prune as choose
    from editlab.probes.conflicts.transfer import transfer_of
    from editlab.state.heads import bias_of

    given = {**parse_overrides(overrides or []), "direction": to, "seed": conflict.seed}
    settings = build(PruneSettings, given, "the pruning")
    by_hand = read_heads(keep) if keep not in ("", "best", "safe") else ()
    asked = conflict.asked("prune", relation) | settings.model_dump(mode="json")
    work = Work(out, checkpoint.open(out.on_step), run, asked)
    if keep and settings.ablation == "mean":
        bias_of(work.lm.model, work.lm.adapter, 0)  # refused now rather than at the end
    items = work.items(conflict, relation)
    scores = map_heads(work.lm, items.split("discovery"), on_step=out.on_step)
    found = choose(work.lm, items, scores, settings, on_step=out.on_step)
    out.show(shown(found.validation(), ("k", "memory", "context", "other", "recall", "perplexity", "safe")))
    out.show(shown(found.to_pandas(), RATES))
    extra: dict[str, Any] = {
        "heads": {str(row.k): [head_name(h) for h in row.heads] for row in found.rows},
        "best": found.best.k,
        "safe": found.safe.k if found.safe else None,
        "costs": {str(k): cost for k, cost in found.costs.items()},
        "validation": records(found.validation()),
        "items": items.headline,
    }
    if transfer:
        moved = transfer_of(
            work.lm,
            found.best.heads,
            settings.direction,
            items.settings,
            transfer.split(","),
            relation,
            out.on_step,
        )
        out.show(shown(moved.to_pandas(), ("where", "unpruned", "pruned", "rise", "low", "high", "q", "n")))
        extra["transfer"] = records(moved.to_pandas())
    headline = found.headline
    if keep:
        chosen = by_hand or (found.best.heads if keep == "best" else found.safe.heads if found.safe else ())
        if not chosen:
            raise ConfigError("No K is safe, so there is nothing safe to keep.", "Use --keep best, or name heads.")
        entry = work.lm.prune_heads(chosen, means=means_of(work.lm, items, chosen, settings))
        extra |= {"kept": entry.id, "kept_heads": [head_name(h) for h in chosen]}
        headline += f" Kept as {entry.id}: {entry.edit.summary}."
    work.end(headline, found.to_pandas(), {"pruning": found, "heads": scores}, extra, pack=bool(keep))


def compare(
    out: Output,
    checkpoint: EditedCheckpoint,
    conflict: Conflict,
    overrides: Overrides = None,
    relation: OfRelation = "capital",
    to: Towards = "context",
    juice: Annotated[bool, typer.Option("--juice/--no-juice", help="Dual runs too, which take longest.")] = True,
    edit: Annotated[
        str, typer.Option("--edit", help="Instead: conflicts and heads before and after edits by this method.")
    ] = "",
    facts: Annotated[int, typer.Option("--facts", min=1, help="With --edit: how many subjects are edited.")] = 12,
    run: Run = None,
) -> None:
    """Every lever in one table: instruction, CAD, AdaCAD, pruning, JuICE; or an edit's conflicts with --edit."""
    from editlab.config import build, parse_overrides
    from editlab.probes.conflicts.heads import map_heads
    from editlab.probes.conflicts.prune import PruneSettings

    given = parse_overrides(overrides or [])
    settings = None if edit else build(PruneSettings, {"controls": 0, **given, "direction": to}, "the pruning")
    chosen = {"method": edit, "settings": given} if settings is None else settings.model_dump(mode="json")
    work = Work(out, checkpoint.open(out.on_step), run, conflict.asked("compare", relation) | chosen)
    items = work.items(conflict, relation)
    if settings is None:
        from editlab.runs.edited_conflicts import edited_conflicts

        edited = edited_conflicts(work.lm, items.split("discovery"), edit, given, facts=facts, on_step=out.on_step)
        out.show(shown(edited.to_pandas(), RATES))
        extra = {
            "agreement": edited.agreement,
            "shielded": edited.shielded,
            "failed": [{"fact": f, "reason": r} for f, r in edited.failed],
            "heads": {name: records(found.to_pandas()) for name, found in edited.heads.items()},
        }
        work.end(edited.headline, edited.to_pandas(), {"edited": edited}, extra)
        return
    from editlab.probes.conflicts.levers import compare as weigh

    scores = map_heads(work.lm, items.split("discovery"), on_step=out.on_step)
    found = weigh(work.lm, items, scores, settings.direction, settings=settings, juice=juice, on_step=out.on_step)
    out.show(
        shown(
            found.to_pandas(),
            ("lever", *RATES[1:5], "rise", "rise_low", "rise_high", "q", "agreeing", "passes", "setting"),
        )
    )
    work.end(found.headline, found.to_pandas(), {"levers": found}, {"items": items.headline})


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Memory against context: who wins, which heads decide, and how to turn the balance.")
    app.add_typer(group, name="conflicts")
    group.command()(spread(probe))
    group.command()(spread(heads))
    group.command()(spread(prune))
    group.command()(spread(compare))

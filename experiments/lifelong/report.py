"""The table and the figure of `run.py`, beside published figures for larger models."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from editlab.viz.style import COLOURS, DASHES, MARKERS

OF_COUNTERFACT = {"efficacy": "efficacy", "paraphrase": "paraphrase", "neighbourhood": "neighbourhood", "score": "S"}
# Reliability, generalization and locality are shares of tokens, as published; "mean" is theirs.
OF_WISE = {
    "rewrite_acc": "reliability", "rephrase_acc": "generalization", "locality, published": "locality", "mean": "mean",
    "locality, stripped": "prefix stripped", "neighbourhood_same": "near neighbours", "efficacy_said": "said",
    "paraphrase_said": "said on paraphrases",
}  # fmt: skip
SWEPT = ("reliability", "generalization", "said on paraphrases", "near neighbours")
ROUTED = ("paraphrases", "neighbours", "other facts", "published", "stripped")
# Model, method, edits, one an edit or several: efficacy, generalization, specificity on CounterFact. In percent.
SEQUENCES = [
    ("Llama-3-8B", "ROME", "2,000, 100 an edit", 64.4, 61.4, 49.4),
    ("Llama-3-8B", "MEMIT", "2,000, 100 an edit", 65.7, 64.7, 51.6),
    ("Llama-3-8B", "AlphaEdit", "2,000, 100 an edit", 98.9, 94.2, 67.9),
    ("GPT-2 XL", "MEMIT", "2,000, 100 an edit", 94.7, 85.8, 60.5),
    ("GPT-2 XL", "AlphaEdit", "2,000, 100 an edit", 99.5, 94.0, 66.4),
]
# Method: (reliability, generalization, locality) after 1, 10, 100 and 1,000 edits, zsRE, Llama-2-7B.
LIFELONG = {
    "FT-L": [(0.57, 0.52, 0.96), (0.48, 0.48, 0.76), (0.30, 0.27, 0.23), (0.19, 0.16, 0.03)],
    "ROME": [(0.85, 0.80, 0.99), (0.64, 0.62, 0.75), (0.23, 0.22, 0.04), (0.01, 0.01, 0.00)],
    "MEMIT": [(0.84, 0.81, 0.99), (0.58, 0.58, 0.85), (0.02, 0.02, 0.02), (0.04, 0.04, 0.02)],
    "GRACE": [(0.99, 0.36, 1.0), (0.96, 0.16, 1.0), (0.96, 0.15, 1.0), (0.93, 0.08, 1.0)],
    "WISE": [(0.98, 0.92, 1.0), (0.94, 0.88, 1.0), (0.90, 0.81, 1.0), (0.77, 0.72, 1.0)],
}


def write(results: Path) -> None:
    """Write results.md and, where kaleido and a browser are installed, a figure a model."""
    table = pd.read_csv(results)
    target = results.with_suffix(".md")
    target.write_text(_markdown(table), encoding="utf-8")
    print(f"wrote {target}")
    for model, rows in table.groupby("model", sort=False):
        picture = results.with_name(f"{model}.svg")
        try:
            figure(rows).write_image(picture, width=1000, height=620)
            print(f"wrote {picture}")
        except (ImportError, ValueError, RuntimeError) as error:
            print(f"no figure: {error}")


def _markdown(table: pd.DataFrame) -> str:
    lines = []
    for model, rows in table.groupby("model", sort=False):
        base = rows[rows.edits == rows.edits.max()].drop_duplicates("metric").set_index("metric").base
        lines += [
            f"## {model}, in CounterFact's terms",
            "",
            *_rows(rows, OF_COUNTERFACT, base),
            "",
            f"## {model}, in WISE's terms",
            "",
            *_rows(rows, OF_WISE, base),
            "",
        ]
    lines += [
        "Shares in percent over the facts written so far (at most 50, evenly spread), with 95 % intervals. A second,",
        "a kilobyte: a fact, in the run and on the disk.",
        "",
        *_sweep(Path(__file__).with_name("sweep.csv")),
        "## Published, larger models",
        "",
        "Sequences on CounterFact (AlphaEdit, arXiv 2410.02355, table 1): efficacy, generalization, specificity.",
        "",
        "| model | method | edits | efficacy | generalization | specificity |",
        "|---|---|---|---|---|---|",
        *(f"| {' | '.join(str(x) for x in row)} |" for row in SEQUENCES),
        "",
        "zsRE, Llama-2-7B (WISE, arXiv 2405.14768): reliability / generalization / locality, teacher-forced tokens.",
        "",
        "| method | 1 | 10 | 100 | 1,000 |",
        "|---|---|---|---|---|",
    ]
    for method, cells in LIFELONG.items():
        shown = (" / ".join(f"{x:.2f}" for x in cell) for cell in cells)
        lines.append(f"| {method} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def _sweep(path: Path) -> list[str]:
    """What settings of `wise` were tried."""
    columns = [*SWEPT, *(f"routed: {name}" for name in ROUTED)]
    lines = [
        "## Settings of `wise`, smollm2-135m",
        "",
        "From sweep.csv, in percent: a few edits one after the other, scored at the end; and the shares of prompts",
        "that are routed, which bound what locality can lose. Single runs of few facts, so a difference of ten means",
        "little. The last two lines are the preset.",
        "",
        f"| settings | edits | {' | '.join(columns)} |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for _, row in pd.read_csv(path).iterrows():
        cells = ["-" if pd.isna(row[name]) else f"{100 * row[name]:.0f}" for name in columns]
        lines.append(f"| {row.settings} | {row.edits} | {' | '.join(cells)} |")
    return [*lines, ""]


def _rows(table: pd.DataFrame, names: dict[str, str], base: pd.Series) -> list[str]:
    head = ["setting", "edits", *names.values(), "perplexity", "control KL", "norm", "failed", "s", "kB"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for (setting, edits), rows in table.groupby(["setting", "edits"], sort=False):
        by = rows.set_index("metric")
        three = by.edited.reindex(_MEAN_OF)
        cells = [_share(by.loc[n]) if n in by.index else "-" for n in names]
        if "mean" in names and not three.isna().any():
            cells[list(names).index("mean")] = f"{100 * three.mean():.1f}"
        model = [f"{by.edited[n]:.{d}f}" if n in by.index else "-" for n, d in _OF_MODEL]
        first = rows.iloc[0]
        costs = [str(int(first.failed)), f"{first.seconds:.1f}", f"{first.bytes / 1000:.0f}"]
        lines.append(f"| {' | '.join([setting, str(edits), *cells, *model, *costs])} |")
    unedited = [f"{100 * base[n]:.0f}" if n in base.index else "-" for n in names]
    lines.append(f"| none | 0 | {' | '.join(unedited)} | {base['perplexity']:.1f} | 0 | 1 | | | |")
    return lines


def _share(row: pd.Series) -> str:
    """In percent, with the interval where more than one value gives one."""
    interval = "" if pd.isna(row.low) else f" ({100 * row.low:.0f} to {100 * row.high:.0f})"
    return f"{100 * row.edited:.0f}{interval}"


_MEAN_OF = ["rewrite_acc", "rephrase_acc", "locality, published"]
_OF_MODEL = (("perplexity", 1), ("control_kl", 3), ("norm_ratio", 2))


def figure(table: pd.DataFrame):
    """Shares and perplexity by edits so far, a line a setting."""
    from plotly.subplots import make_subplots

    names = {**OF_COUNTERFACT, "efficacy_said": "said", "perplexity": "perplexity"}
    plot = make_subplots(2, 3, subplot_titles=list(names.values()))
    for i, (setting, rows) in enumerate(table.groupby("setting", sort=False)):
        for n, name in enumerate(names):
            part = rows[rows.metric == name]
            plot.add_scatter(
                x=part.edits,
                y=part.edited,
                name=setting,
                legendgroup=setting,
                showlegend=n == 0,
                mode="lines+markers",
                line={"color": COLOURS[i % len(COLOURS)], "dash": DASHES[i // len(COLOURS)]},
                marker={"symbol": MARKERS[i % len(MARKERS)]},
                row=1 + n // 3,
                col=1 + n % 3,
            )
    for n, name in enumerate(names):
        place = {"row": 1 + n // 3, "col": 1 + n % 3}
        plot.update_xaxes(type="log", title="edits", **place)
        if name == "perplexity":
            plot.update_yaxes(type="log", **place)
        else:
            plot.update_yaxes(range=[0, 1.02], tickformat=".0%", **place)
    plot.update_layout(template="plotly_white", margin={"l": 50, "r": 10, "t": 40, "b": 50})
    return plot

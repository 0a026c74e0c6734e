"""The table and the figure of `run.py`, beside published figures for larger models."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from editlab.viz.style import COLOURS, DASHES, MARKERS

METHODS = ("rome", "memit", "emmet", "emmet-released", "alphaedit", "ultraedit", "ft", "lora")
SHOWN = {
    "efficacy": "efficacy", "paraphrase": "paraphrase", "neighbourhood": "neighbourhood", "score": "S",
    "efficacy_argmax": "argmax", "efficacy_said": "said",
}  # fmt: skip
# Model, method, facts in one edit, efficacy, paraphrase, neighbourhood, S, source. In percent.
PUBLISHED = [
    ("GPT-2 medium", "ROME", 1, 100.0, 96.4, 71.8, 87.4, "arXiv 2202.05262, table 5"),
    ("GPT-2 XL", "ROME", 1, 100.0, 96.4, 75.4, 89.2, "arXiv 2202.05262, table 4"),
    ("Llama-2-7B", "MEMIT", 16, 99.4, 99.4, 65.1, 84.6, "arXiv 2506.04226, table 31"),
    ("Llama-2-7B", "MEMIT", 64, 98.1, 97.0, 61.1, 81.4, "arXiv 2506.04226, table 31"),
    ("Llama-2-7B", "MEMIT", 256, 96.3, 93.6, 56.9, 77.6, "arXiv 2506.04226, table 31"),
    ("Llama-2-7B", "EMMET", 16, 99.4, 95.6, 82.9, 92.1, "arXiv 2506.04226, table 26"),
    ("Llama-2-7B", "EMMET", 64, 98.4, 97.2, 78.0, 90.2, "arXiv 2506.04226, table 26"),
    ("Llama-2-7B", "EMMET", 256, 99.6, 97.9, 62.1, 82.5, "arXiv 2506.04226, table 26"),
    ("GPT-J-6B", "MEMIT", 10_000, 98.9, 88.6, 73.7, 85.8, "arXiv 2210.07229"),
    ("Llama-3-8B", "MEMIT", 1024, 97.7, 92.7, 73.2, 86.5, "arXiv 2405.00664, lambda 5e4"),
]


def write(results: Path) -> None:
    """Write results.md and, where kaleido and a browser are installed, results.svg beside the csv."""
    table = pd.read_csv(results, keep_default_na=False)
    table[["base", "edited", "low", "high"]] = table[["base", "edited", "low", "high"]].apply(pd.to_numeric)
    target = results.with_suffix(".md")
    target.write_text(_markdown(table), encoding="utf-8")
    print(f"wrote {target}")
    try:
        figure(table).write_image(results.with_suffix(".svg"), width=900, height=380)
        print(f"wrote {results.with_suffix('.svg')}")
    except (ImportError, ValueError, RuntimeError) as error:
        print(f"no figure: {error}")


def _markdown(table: pd.DataFrame) -> str:
    lines = [
        "| method | facts an edit | n | " + " | ".join(SHOWN.values()) + " | control KL | perplexity | s a fact |",
        "|---" * (len(SHOWN) + 6) + "|",
    ]
    keys = ["method", "batch", "settings", "n"]
    base: dict[int, list[str]] = {}
    order = {method: i for i, method in enumerate(METHODS)}
    groups = sorted(table.groupby(keys, sort=False), key=lambda g: (g[0][1], order.get(g[0][0], len(order))))
    for (method, batch, settings, n), rows in groups:
        by = rows.set_index("metric")
        cells = [_share(by, name) for name in SHOWN]
        kl = f"{by.edited['control_kl']:.3f}" if "control_kl" in by.index else "-"
        ppl = f"{by.edited['perplexity']:.1f} ({by.base['perplexity']:.1f})" if "perplexity" in by.index else "-"
        failed = int(by.failed.iloc[0])
        name = method + (f" `{settings}`" if settings else "") + (f", {failed} failed" if failed else "")
        seconds = float(by.seconds.iloc[0]) / max(1, n - failed)
        lines.append(f"| {name} | {batch} | {n} | {' | '.join(cells)} | {kl} | {ppl} | {seconds:.2f} |")
        unedited = rows.set_index("metric").base
        base[n] = [f"{100 * unedited[name]:.1f}" if name in unedited.index else "-" for name in SHOWN]
    lines += [f"| none | | {n} | {' | '.join(base[n])} | 0 | | |" for n in sorted(base)]
    lines += [
        "",
        "Shares in percent with 95 % intervals over facts; chance is 50 for the first three. n differs with the facts",
        "of an edit: 256 take all there are, and of single edits, each a model of its own, fewer were made. Values",
        "are kept and shared, so seconds have them only where no other method had asked before; the machine had other",
        "work at the time. Published, larger models, on their own samples of CounterFact:",
        "",
        "| model | method | facts an edit | efficacy | paraphrase | neighbourhood | S | source |",
        "|---|---|---|---|---|---|---|---|",
        *(f"| {' | '.join(str(x) for x in row)} |" for row in PUBLISHED),
    ]
    return "\n".join(lines) + "\n"


def _share(by: pd.DataFrame, name: str) -> str:
    if name not in by.index:
        return "-"
    return f"{100 * by.edited[name]:.1f} ({100 * by.low[name]:.0f} to {100 * by.high[name]:.0f})"


def figure(table: pd.DataFrame):
    """Efficacy, paraphrase, neighbourhood and S by batch size, a line a method."""
    from plotly.subplots import make_subplots

    names = list(SHOWN)[:4]
    plot = make_subplots(1, len(names), shared_yaxes=True, subplot_titles=[SHOWN[n] for n in names])
    for i, (method, rows) in enumerate(table[table.settings == ""].groupby("method", sort=False)):
        style = {"color": COLOURS[i % len(COLOURS)], "dash": DASHES[i % len(DASHES)]}
        for column, name in enumerate(names, 1):
            part = rows[rows.metric == name].sort_values("batch")
            plot.add_scatter(
                x=part.batch,
                y=part.edited,
                name=method,
                legendgroup=method,
                showlegend=column == 1,
                mode="lines+markers",
                line=style,
                marker={"symbol": MARKERS[i % len(MARKERS)]},
                error_y={
                    "array": part.high - part.edited,
                    "arrayminus": part.edited - part.low,
                    "symmetric": False,
                    "thickness": 1,
                },
                row=1,
                col=column,
            )
            plot.update_xaxes(type="log", title="facts an edit", row=1, col=column)
    plot.update_yaxes(range=[0, 1.02], tickformat=".0%")
    plot.update_layout(template="plotly_white", margin={"l": 50, "r": 10, "t": 40, "b": 50})
    return plot

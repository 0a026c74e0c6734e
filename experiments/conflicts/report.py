"""results.md from results/*.csv, of runs/experiments/conflicts, or with --update-results of this folder.

python experiments/conflicts/report.py --update-results
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pandas as pd

from editlab.state.files import write_text

sys.path.append(str(Path(__file__).parents[1]))
from shared import add_option, results_folder

SHARE = {"memory", "context", "other", "agreeing", "recall", "rise", "unpruned", "pruned"}


def read(folder: Path, step: str) -> dict[str, pd.DataFrame]:
    """Tables of a step by model."""
    paths = sorted((folder / "results").glob(f"*-{step}.csv"), key=lambda p: ("smollm" not in p.stem, p.stem))
    return {path.stem.removesuffix(f"-{step}"): pd.read_csv(path, dtype={"head": str}) for path in paths}


def shown(rows: pd.DataFrame, columns: dict[str, str]) -> str:
    """A table in Markdown; shares in per cent, with their interval where there is one."""

    def cell(row: pd.Series, name: str) -> str:
        value = row.get(name)
        if value is None or (isinstance(value, float) and value != value):
            return ""
        if name not in SHARE:
            return f"{value:.3g}" if isinstance(value, float) else str(value)
        low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
        if name == "rise":
            text = f"{value:+.0%}"
            return text if low is None or low != low else f"{text} ({low:+.0%} to {high:+.0%})"
        text = f"{value:.0%}"
        return text if low is None or low != low else f"{text} ({low:.0%} to {high:.0%})"

    head = [f"| {' | '.join(columns.values())} |", f"|{'---|' * len(columns)}"]
    return "\n".join([*head, *(f"| {' | '.join(cell(row, name) for name in columns)} |" for _, row in rows.iterrows())])


RATES = {"memory": "memory", "context": "context", "other": "other"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_option(parser)
    folder = results_folder(__file__, parser.parse_args().update_results)
    parts = [
        "# Results\n\nGreedy first tokens, 95 % intervals over subjects; rows of controls have the spread of their "
        "head sets instead; q is p over heads, levers of a direction or places of a direction (Benjamini-Hochberg). "
        "Made by `report.py`."
    ]
    for model, rows in read(folder, "probe").items():
        first = rows.iloc[0]
        parts.append(f"## {model}: who wins ({first['items']} conflicts, {first['subjects']} subjects, all splits)")
        columns = {"condition": "context", **RATES, "memorization_ratio": "M_R", "prefers_memory": "LD > 0"}
        parts.append(shown(rows, {**columns, "difference": "mean LD"}))
        if rows["popularity_r"].notna().any():
            parts.append(f"LD against population: Spearman's r = {rows['popularity_r'].iloc[0]:.2f}.")
    for model, rows in read(folder, "heads").items():
        first = rows.iloc[0]
        parts.append(f"## {model}: heads ({first['subjects']} discovery subjects)")
        columns = {"head": "head", "kv_group": "kv group", "score": "S_both", "error": "s.e.", "q": "q"}
        columns |= {
            "S_subject": "S_subject",
            "S_context": "S_context",
            "role": "role",
            "S_both_paragraph": "S_both, paragraph",
        }
        parts.append(shown(rows.head(10).fillna({"role": ""}), columns))
        flips = rows.head(10)
        asked = flips["S_both_paragraph"].notna().any()
        changed = int((flips["score"] * flips["S_both_paragraph"] < 0).sum())
        parts.append(
            f"Split-half r {first['split_half_r']:.2f}; exact against gradient scores r = {first['r_gradient']:.3f}. "
            + (f"Of the ten heads, {changed} have the other sign under coherent paragraphs." if asked else "")
        )
    for model, rows in read(folder, "prune").items():
        for direction, of in rows.groupby("direction", sort=False):
            test, chosen = of[of["split"] == "test"], of[of["split"] == "validation"]
            n, best, safe = test.iloc[0]["subjects"], int(of["best"].iloc[0]), of["safe_k"].iloc[0]
            words = f"safe K = {int(safe)}" if safe == safe else "no K keeps recall and perplexity"
            parts.append(f"## {model}: pruning towards the {direction} ({n} test subjects; best K = {best}, {words})")
            columns = {"condition": "", **RATES, "rise": f"rise of {direction}", "recall": "recall kept"}
            parts.append(shown(test, {**columns, "perplexity": "perplexity", "kl": "KL"}))
            parts.append(f"Every K, on {chosen.iloc[0]['subjects']} validation subjects:")
            parts.append(shown(chosen, {"condition": "", **RATES, "recall": "recall kept", "perplexity": "perplexity"}))
    for model, rows in read(folder, "levers").items():
        for direction, of in rows.groupby("direction", sort=False):
            parts.append(f"## {model}: levers towards the {direction} ({of.iloc[0]['subjects']} test subjects)")
            columns = {"lever": "lever", "setting": "setting", **RATES, "rise": f"rise of {direction}"}
            parts.append(shown(of, {**columns, "q": "q", "agreeing": "agreeing context", "passes": "passes"}))
    for model, rows in read(folder, "edits").items():
        parts.append(f"## {model}: conflicts before and after an edit (each fact alone)")
        columns = {"method": "method", "condition": "", **RATES, "subjects": "facts", "agreement": "r of head maps"}
        rows = rows.assign(shielded=rows["shielded"].fillna("").map(shares))
        parts.append(shown(rows, {**columns, "shielded": "answered by the side memory"}))
    for model, rows in read(folder, "transfer").items():
        parts.append(f"## {model}: the same heads elsewhere")
        rows = rows.rename(columns={"low": "rise_low", "high": "rise_high"})
        columns = {"direction": "towards", "where": "where", "unpruned": "unpruned", "pruned": "pruned", "rise": "rise"}
        parts.append(shown(rows, {**columns, "q": "q", "n": "subjects"}))
    write_text(folder / "results.md", "\n\n".join(parts) + "\n")


def shares(text: str) -> str:
    """{"conflict": 1.0, ...} in words."""
    return ", ".join(f"{kind} {share:.0%}" for kind, share in json.loads(text).items()) if text else ""


if __name__ == "__main__":
    main()

"""A run as a notebook that does the same from Python."""

from __future__ import annotations

import json
from typing import Any

from editlab.runs import read_run
from editlab.runs.records import RunRecord


def of_run(run: RunRecord) -> dict[str, Any]:
    """A notebook in Jupyter's format, version 4, without outputs."""
    model = repr(str(run.model))
    start = f"from editlab import LM\n\nlm = LM.from_pretrained({model})"
    if run.kind == "locate":
        parts = [start, _locate(run)]
    elif run.kind == "memory":
        parts = [start, _memory(run)]
    elif run.kind == "conflicts":
        parts = [start, *_conflicts(run)]
    elif run.is_batch:
        parts = [start, *_batch(run)]
    elif run.kind == "eval":
        pack = str(run.manifest.get("config", {}).get("pack", run.folder))
        parts = [start, f"lm.load_edits({pack!r})\nlm.ledger", "lm.evaluate()"]
    else:
        parts = [start, f"lm.load_edits({str(run.folder)!r})\nlm.ledger"]
    title = f"# {run.name}\n\nThe same as this run of kind {run.kind}: run the cells from top to bottom."
    kinds = ["markdown", *["code"] * len(parts)]
    cells = [_cell(i, kind, text) for i, (kind, text) in enumerate(zip(kinds, [title, *parts], strict=True))]
    language = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": language, "cells": cells}


def _memory(run: RunRecord) -> str:
    verb = run.manifest.get("verb", "retain")
    return (
        "from pathlib import Path\n\nfrom editlab.runs.memory.run import run_memory\n"
        "from editlab.runs.memory.verbs import VERBS\n\n"
        f"verb = VERBS[{verb!r}]\nsettings = verb.settings(**{run.manifest.get('config', {})!r})\n"
        f"found = run_memory(lm, verb, settings, Path('runs', 'again-{run.name}'))\nfound.plot()"
    )


def _locate(run: RunRecord) -> str:
    asked = run.manifest.get("asked")
    settings = ", ".join(f"{k}={v!r}" for k, v in run.manifest.get("config", {}).items())
    if not asked:
        return (
            "from pathlib import Path\n\nfrom editlab.data.formats import load_facts\n"
            "from editlab.probes.trace import Config, trace_many\n\n"
            "facts = load_facts(Path('facts.jsonl'))  # the run does not keep the facts that it averaged over\n"
            f"found = trace_many(lm, facts, Config({settings}))\nfound.plot()"
        )
    prompt, subject, answer = (asked.get(name) for name in ("prompt", "subject", "answer"))
    return f"found = lm.locate({prompt!r}, {subject!r}, answer={answer!r}, {settings})\nfound.plot()"


def _conflicts(run: RunRecord) -> list[str]:
    config = dict(run.manifest.get("config", {}))
    settings = {k: config[k] for k in ("format", "stem", "draws", "pool", "subjects", "seed") if k in config}
    cases = f"cases_of_relation({config.get('relation', 'capital')!r})"
    if "file" in config:
        cases = "cases_of_file(Path('facts.jsonl'))  # the run does not keep the facts that it asked about"
    direction = config.get("direction", "context")
    return [
        "from pathlib import Path\n\nfrom editlab.data.conflicts import cases_of_file, cases_of_relation\n"
        "from editlab.probes.conflicts.behaviour import probe\n"
        "from editlab.probes.conflicts.heads import map_heads\n"
        "from editlab.probes.conflicts.items import ItemSettings\n"
        "from editlab.probes.conflicts.prune import PruneSettings, prune",
        f"cases = {cases}\nbehaviour = probe(lm, cases, ItemSettings(**{settings!r}))\nbehaviour.plot()",
        "heads = map_heads(lm, behaviour.items.split('discovery'))\nheads.plot()",
        f"found = prune(lm, behaviour.items, heads, PruneSettings(direction={direction!r}))\nfound.plot()",
    ]


def _batch(run: RunRecord) -> list[str]:
    plan, _, facts = read_run(run.folder)
    rows = json.dumps([fact.model_dump(mode="json", exclude_defaults=True) for fact in facts], ensure_ascii=False)
    return [
        f"import json\n\nfrom editlab import Fact\n\nfacts = [Fact(**row) for row in json.loads({rows!r})]",
        "from pathlib import Path\n\nfrom editlab.runs import Plan, run_batch\n\n"
        f"plan = Plan(**{plan.model_dump(mode='python')!r})\n"
        f"result = run_batch(lm, facts, plan, Path('runs', 'again-{run.name}'))",
        "for report in result.reports:\n    display(report)",
    ]


def _cell(number: int, kind: str, text: str) -> dict[str, Any]:
    code: dict[str, Any] = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": text, **code}

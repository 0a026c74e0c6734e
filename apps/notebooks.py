"""A run as a notebook that does the same from Python, where the run keeps what that takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from editlab.data.relations import relations
from editlab.evaluation.results import Evaluation
from editlab.evaluation.suite import Suite
from editlab.probes.conflicts.items import ItemSettings
from editlab.probes.conflicts.prune import PruneSettings
from editlab.runs import read_run
from editlab.runs.memory.run import read_planned
from editlab.runs.memory.verbs import VERBS
from editlab.runs.records import RunRecord

Writer = Callable[[RunRecord], list[str]]
SAME = "The same as this run of kind {kind}"
LOAD = "from pathlib import Path\n\nfrom editlab.data.formats import load_facts\n\n"
BESIDE = ("evidence", "flow", "transfer", "kept")  # what a run about conflicts may have besides, by its manifest


def can_write(run: RunRecord) -> bool:
    """Whether there is a notebook of such a run."""
    return _writer(run) is not None


def of_run(run: RunRecord) -> dict[str, Any]:
    """A notebook in Jupyter's format, version 4, without outputs; of a run for which `can_write`."""
    writer = _writer(run)
    assert writer is not None
    start = f"from editlab import LM\n\nlm = LM.from_pretrained({str(run.model)!r})"
    parts = [start, *writer(run)]
    what = SAME.format(kind=run.kind) if writer is not _edits else "The edits of this run, on the model"
    title = f"# {run.name}\n\n{what}: run the cells from top to bottom.{_without(run)}"
    kinds = ["markdown", *["code"] * len(parts)]
    cells = [_cell(i, kind, text) for i, (kind, text) in enumerate(zip(kinds, [title, *parts], strict=True))]
    language = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": language, "cells": cells}


def _writer(run: RunRecord) -> Writer | None:
    config = run.manifest.get("config", {})
    if run.is_batch:
        return _batch
    if run.kind == "memory":
        return _memory
    if (run.folder / "pack.json").is_file() and run.kind != "conflicts":
        return _edits
    if run.kind == "channels":  # of tests and steering, the channels or their directions are not kept
        return _scan if "modes" in config else None
    if run.kind == "conflicts":
        # The page's runs name no command. What 'heads' and 'compare' set is not all kept, nor what conflictQA asked.
        is_known = config.get("command", "probe") in ("probe", "prune") and "file" not in run.manifest
        return _conflicts if is_known else None
    return {"locate": _locate, "probe": _probe, "tune": _tune, "eval": _eval}.get(run.kind)


def _without(run: RunRecord) -> str:
    """What the notebook does not have of the run."""
    said = ""
    if run.manifest.get("model_edits") and run.kind != "memory":
        edits = ", ".join(run.manifest["model_edits"])
        said += f"\n\nEdits were in force ({edits}), which the run does not keep: put them in force first."
    beside = [name for name in BESIDE if name in run.manifest] if run.kind == "conflicts" else []
    return said + (f"\n\nLeft out: {', '.join(beside)}." if beside else "")


def _edits(run: RunRecord) -> list[str]:
    return [f"lm.load_edits({str(run.folder)!r})\nlm.ledger"]


def _eval(run: RunRecord) -> list[str]:
    settings = Evaluation.load(run.folder).settings
    given = Suite(**settings["suite"]).model_dump(mode="json", exclude_defaults=True)
    file = given.pop("facts", None)
    facts, load = "", ""
    if file is not None:
        facts = "facts, "
        load = f"{LOAD}facts = load_facts(Path({file!r}))\n"
    asked = "".join(f", {name}={value!r}" for name, value in given.items())
    return [
        f"lm.load_edits({str(run.manifest['config']['pack'])!r})\nlm.ledger",
        f"{load}lm.evaluate({facts}mode={settings['mode']!r}{asked})",
    ]


def _probe(run: RunRecord) -> list[str]:
    config = run.manifest["config"]
    settings = "".join(f", {name}={value!r}" for name, value in config["settings"].items())
    return [f"found = lm.probe({config['prompts']!r}, {config['probe']!r}{settings})\nfound.plot()"]


def _tune(run: RunRecord) -> list[str]:
    config = run.manifest["config"]
    most = config["limit"]
    if "file" in config:
        facts = f"{LOAD}facts = load_facts(Path({config['file']!r}))[:{most}]"
    else:
        facts = (
            "from editlab.data.relations import relation\nfrom editlab.evaluation.known import known\n\n"
            f"facts = known(lm, relation('capital')).facts()[:{most}]"
        )
    asked = f"{config['method']!r}, {config['grid']!r}, batch={config['batch']!r}"
    return [facts, f"from editlab.runs.tune import tune\n\ntune(lm, facts, {asked})"]


def _scan(run: RunRecord) -> list[str]:
    config = ", ".join(f"{name}={value!r}" for name, value in run.manifest["config"].items())
    return [
        f"from editlab.probes.channels.scan import Config, scan\n\nfound = scan(lm, Config({config}))\nfound.plot()"
    ]


def _memory(run: RunRecord) -> list[str]:
    planned = read_planned(run.folder, VERBS)
    assert planned is not None
    edits = [] if planned.edits is None else [f"lm.load_edits({str(planned.edits)!r})\nlm.ledger"]
    return [
        *edits,
        "from pathlib import Path\n\nfrom editlab.runs.memory.run import run_memory\n"
        "from editlab.runs.memory.verbs import VERBS\n\n"
        f"verb = VERBS[{planned.verb.name!r}]\n"
        f"settings = verb.settings(**{planned.settings.model_dump(mode='json')!r})\n"
        f"found = run_memory(lm, verb, settings, Path('runs', 'again-{run.name}'))\nfound.plot()",
    ]


def _locate(run: RunRecord) -> list[str]:
    asked = run.manifest.get("asked")
    settings = ", ".join(f"{k}={v!r}" for k, v in run.manifest.get("config", {}).items())
    if not asked:
        return [
            f"{LOAD.rstrip()}\n"
            "from editlab.probes.trace import Config, trace_many\n\n"
            "facts = load_facts(Path('facts.jsonl'))  # the run does not keep the facts that it averaged over\n"
            f"found = trace_many(lm, facts, Config({settings}))\nfound.plot()"
        ]
    prompt, subject, answer = (asked.get(name) for name in ("prompt", "subject", "answer"))
    return [f"found = lm.locate({prompt!r}, {subject!r}, answer={answer!r}, {settings})\nfound.plot()"]


def _conflicts(run: RunRecord) -> list[str]:
    config: Mapping[str, Any] = run.manifest["config"]

    def chosen(settings: type[ItemSettings] | type[PruneSettings]) -> dict[str, Any]:
        return {name: config[name] for name in settings.model_fields if name in config}

    cases = f"cases_of_relation({config.get('relation')!r})"
    if config.get("relation") not in relations():
        cases = "cases_of_file(Path('facts.jsonl'))  # the run does not keep the facts that it asked about"
    formats = f", formats={config['formats']!r}" if config.get("formats") else ""
    parts = [
        "from pathlib import Path\n\nfrom editlab.data.conflicts import cases_of_file, cases_of_relation\n"
        "from editlab.hooks.heads import read_heads\nfrom editlab.probes.conflicts.behaviour import probe\n"
        "from editlab.probes.conflicts.heads import map_heads\n"
        "from editlab.probes.conflicts.items import ItemSettings\n"
        "from editlab.probes.conflicts.prune import PruneSettings, prune",
        f"cases = {cases}\n"
        f"behaviour = probe(lm, cases, ItemSettings(**{chosen(ItemSettings)!r}){formats})\nbehaviour.plot()",
    ]
    if config.get("command") != "probe":
        parts.append("heads = map_heads(lm, behaviour.items.split('discovery'))\nheads.plot()")
    if "grid" in config:
        is_of_page = "command" not in config  # the page names all heads, in order
        ranked = f", ranked=read_heads({', '.join(run.manifest['heads'])!r})" if is_of_page else ""
        asked = f"PruneSettings(**{chosen(PruneSettings)!r}){ranked}"
        parts.append(f"found = prune(lm, behaviour.items, heads, {asked})\nfound.plot()")
    return parts


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

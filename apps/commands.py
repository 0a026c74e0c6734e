"""The command lines that do what a page does."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from editlab.facts import Fact
from editlab.runs import Plan
from editlab.runs.records import RunRecord

from .forms import as_text

FILE = "facts.jsonl"  # stands for a file that a run does not keep


def edit(model: str, fact: Fact, method: str, settings: Mapping[str, Any]) -> str:
    """Edit one fact."""
    words = ["editlab", "edit", "--model", model, "--method", method]
    words += ["--prompt", fact.prompt, *(["--subject", fact.subject] if fact.has_subject else [])]
    words += ["--target", fact.target_new]
    words += ["--true", fact.target_true] if fact.target_true else []
    words += ["--target-prefix", fact.target_prefix] if fact.target_prefix_by == "given" else []
    for option, prompts in (("--paraphrase", fact.paraphrases), ("--neighbour", [q.prompt for q in fact.neighbours])):
        words += [word for prompt in prompts for word in (option, prompt)]
    return shlex.join([*words, *_overrides(settings)])


def batch(model: str, plan: Plan, facts: str = "facts.jsonl") -> str:
    """Edit a file of facts."""
    words = ["editlab", "edit", "--model", model, "--method", plan.method, "--file", facts, "--mode", plan.mode]
    words += ["--batch-size", str(plan.batch_size)] if plan.mode == "sequential-batched" else []
    stop = plan.stop.model_dump(exclude_defaults=True)
    words += [word for name, value in stop.items() for word in ("--stop", f"{name}={value}")]
    return shlex.join([*words, *_overrides(plan.settings)])


def locate(model: str, asked: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Trace a prompt."""
    words = ["editlab", "locate", "--model", model]
    for option in ("prompt", "subject", "answer"):
        words += [f"--{option}", str(asked[option])] if asked.get(option) else []
    return shlex.join([*words, *_tracing(settings)])


def locate_file(model: str, file: str, limit: int | None, settings: Mapping[str, Any]) -> str:
    """Trace the facts of a file."""
    words = ["editlab", "locate", "--model", model, "--file", file]
    words += ["--limit", str(limit)] if limit is not None else []
    return shlex.join([*words, *_tracing(settings)])


def probe(model: str, name: str, prompts: Sequence[str], settings: Mapping[str, Any]) -> str:
    """Probe prompts."""
    words = ["editlab", "probe", name, *_overrides(settings), "--model", model]
    return shlex.join([*words, *(word for prompt in prompts for word in ("--prompt", prompt))])


def conflicts(verb: str, model: str, asked: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """One of the commands about conflicts.

    Args:
        asked: relation or file, format, draws, subjects, seed; `to` for pruning.
    """
    words = ["editlab", "conflicts", verb, "--model", model]
    words += [asked["relation"]] if verb == "probe" and "relation" in asked else []
    for name in ("relation", "file", "format", "draws", "subjects", "seed", "to"):
        if name in asked and (name != "relation" or verb != "probe"):
            words += [f"--{name}", str(asked[name])]
    return shlex.join([*words, *_overrides(settings)])


def memory(model: str, verb: str, values: Mapping[str, Any]) -> str:
    """A study of memory."""
    shown = {k: v for k, v in values.items() if k not in ("kinds", "engines")}
    words = ["editlab", "memory", verb, "--model", model]
    words += [word for kind in values.get("kinds", ()) for word in ("--kind", kind)]
    words += [word for engine in values.get("engines", ()) for word in ("--engine", engine)]
    if verb != "survive":
        return shlex.join([*words, *_overrides(shown)])
    return shlex.join([*words, *(word for setting in _overrides(shown) for word in ("--set", setting))])


def generate(model: str, prompt: str, max_new_tokens: int) -> str:
    """Continue a prompt."""
    words = ["editlab", "generate", "--model", model, "--prompt", prompt, "--max-new-tokens", str(max_new_tokens)]
    return shlex.join(words)


def of_folder(verb: str, *folders: Path) -> str:
    """A verb that takes what a run wrote: resume, eval, undo, "runs compare", "tune --config"."""
    return shlex.join(["editlab", *verb.split(), *map(str, folders)])


def of_run(run: RunRecord) -> str | None:
    """What does a run again, goes on with it, shows or measures it; None where no command does."""
    settings = run.manifest.get("config", {})
    model = str(run.model)
    if run.state == "interrupted":
        return of_folder("resume", run.folder)
    if run.kind == "locate":
        asked = run.manifest.get("asked")
        return locate(model, asked, settings) if asked else locate_file(model, FILE, None, settings)
    if run.kind == "probe":
        return probe(model, settings["probe"], settings["prompts"], settings["settings"])
    if run.kind == "tune":
        return of_folder("tune --config", run.folder / "config.yaml")
    if run.kind == "study":
        return of_folder("study show", run.folder)
    if (run.folder / "evaluation.json").is_file():
        return of_folder("runs show", run.folder)
    has_facts = run.kind in ("edit", "ledger", "demo") and (run.folder / "pack.json").is_file()
    return of_folder("eval", run.folder) if has_facts else None


def _tracing(settings: Mapping[str, Any]) -> list[str]:
    own = {name: settings[name] for name in ("kind", "seed") if name in settings}
    words = [word for name, value in own.items() for word in (f"--{name}", str(value))]
    return [*words, *_overrides({k: v for k, v in settings.items() if k not in own})]


def _overrides(settings: Mapping[str, Any]) -> list[str]:
    return [f"{name}={_written(value)}" for name, value in settings.items() if value is not None]


def _written(value: Any) -> str:
    return f"[{as_text(value)}]" if isinstance(value, list | tuple) else as_text(value)

"""What a study will cost: one seed of every point is tried on its first facts, and stands for the others."""

from __future__ import annotations

from editlab.errors import EditlabError
from editlab.progress import OnStep, StepInfo, silent
from editlab.runs.estimate import Estimate, estimate
from editlab.studies.plan import RunSpec, StudyPlan
from editlab.studies.work import facts_of, model_of


def estimate_study(plan: StudyPlan, on_step: OnStep = silent) -> list[tuple[str, Estimate | None, str]]:
    """For every run its name, its cost, and why there is none; nothing is written."""
    specs = plan.runs
    found: list[tuple[str, Estimate | None, str]] = []
    tried: dict[str, tuple[Estimate | None, str]] = {}
    for i, spec in enumerate(specs):
        on_step(StepInfo("trying out runs", i, len(specs), "runs", spec.name))
        point = spec.model_dump_json(exclude={"seed": True, "plan": {"settings": {"seed"}}})
        if point not in tried:
            tried[point] = _one(spec, on_step)
        found.append((spec.name, *tried[point]))
    on_step(StepInfo("trying out runs", len(specs), len(specs), "runs"))
    return found


def _one(spec: RunSpec, on_step: OnStep) -> tuple[Estimate | None, str]:
    try:
        lm = model_of(spec)
        return estimate(lm, facts_of(lm, spec), spec.plan, on_step), ""
    except EditlabError as error:
        return None, str(error)

"""General ability before and after, with EleutherAI's lm-evaluation-harness (optional: `pip install 'editlab[eval]'`).

Tasks are the harness's own, by name, or files in a folder of the user's. Most of its tasks fetch their data from the
hub; one that names local files needs no network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scipy import stats

from editlab.errors import ConfigError
from editlab.evaluation.results import Line
from editlab.evaluation.statistics import LEVEL, Estimate
from editlab.evaluation.suite import Suite
from editlab.hooks.decoding import neutral
from editlab.progress import OnStep, StepInfo

if TYPE_CHECKING:
    from editlab.lm import LM


def run_tasks(lm: LM, base: LM, suite: Suite, on_step: OnStep) -> list[Line]:
    """One line per task and metric, called "lm_eval/TASK/METRIC"; intervals from the harness's standard errors.

    Raises:
        ConfigError: lm-eval is not installed, or cannot run a task.
    """
    sides = []
    for i, (state, model) in enumerate((("unedited", base), ("edited", lm))):
        on_step(StepInfo(f"lm-eval on the {state} model", i, 2, "models"))
        sides.append(_estimates(_run(model, suite)))
    on_step(StepInfo("lm-eval on the edited model", 2, 2, "models"))
    before, after = sides
    return [Line(name, before[name], after[name]) for name in after]


def _run(lm: LM, suite: Suite) -> dict[str, Any]:
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise ConfigError("lm-eval is not installed.", "Install it with: pip install 'editlab[eval]'") from None

    folder = suite.lm_eval_tasks
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"There is no folder '{folder}' with tasks.")
    manager = TaskManager(include_path=str(folder) if folder else None)
    unknown = [task for task in suite.lm_eval if task not in manager.all_tasks]
    if unknown:
        raise ConfigError(f"lm-eval has no task {', '.join(unknown)}.", "List its tasks with 'lm-eval ls tasks'.")
    twin = lm.fork()  # a view of its own, which decodes by what a task says and not by the checkpoint's configuration
    twin.model.generation_config = neutral(twin.model.generation_config)
    model = HFLM(pretrained=twin.model, tokenizer=lm.tokenizer, batch_size=16)
    try:
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=list(suite.lm_eval),
            limit=suite.lm_eval_limit,
            task_manager=manager,
            random_seed=suite.seed,
            numpy_random_seed=suite.seed,
            torch_random_seed=suite.seed,
            fewshot_random_seed=suite.seed,
            bootstrap_iters=0,
            verbosity="ERROR",
        )
    except (OSError, ValueError, RuntimeError) as error:
        # Mostly data that cannot be fetched.
        raise ConfigError(f"lm-eval could not run {', '.join(suite.lm_eval)}: {error}.") from error
    return dict(found["results"])


def _estimates(results: dict[str, Any]) -> dict[str, Estimate]:
    z = float(stats.norm.ppf(0.5 + LEVEL / 2))
    out = {}
    for task, found in results.items():
        n = int(found.get("sample_len") or 0)
        for key, value in found.items():
            name, _, rest = key.partition(",")
            if not rest or name.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = found.get(f"{name}_stderr,{rest}")
            spread = z * error if isinstance(error, int | float) else float("nan")
            out[f"lm_eval/{task}/{name}"] = Estimate(
                float(value), value - spread, value + spread, n, "normal" if spread == spread else ""
            )
    return out

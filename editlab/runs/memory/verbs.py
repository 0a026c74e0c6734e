"""What the memory harness can be asked, by name."""

from __future__ import annotations

from editlab.runs.memory import live_curves
from editlab.runs.memory.acquire import AcquireSettings, acquire_courses
from editlab.runs.memory.acquired import AcquireResult
from editlab.runs.memory.curves import StudyResult
from editlab.runs.memory.lasting import SurviveResult
from editlab.runs.memory.order import OrderSettings, order_courses
from editlab.runs.memory.ordered import OrderResult
from editlab.runs.memory.run import Verb
from editlab.runs.memory.settings import StudySettings
from editlab.runs.memory.study import study_courses
from editlab.runs.memory.survive import SurviveSettings, survive_courses
from editlab.runs.memory.unlearn import UnlearnResult, UnlearnSettings, unlearn_courses

_TEXTS = (live_curves.of_texts, "share of studied texts")
_FACTS = (live_curves.of_facts, "share of facts recalled")
_PASSAGES = (live_curves.of_passages, "rise of log-probability (nats a token)")
_ORDER = (live_curves.of_order, "share in the right order")
_FORGETTING = (live_curves.of_forgetting, "loss (nats a token)")

VERBS: dict[str, Verb] = {
    verb.name: verb
    for verb in (
        *(
            Verb(name, StudySettings, study_courses, StudyResult, lambda s: 2 * s.items, _TEXTS)
            for name in ("recognize", "recall", "retain")
        ),
        Verb(
            "acquire",
            AcquireSettings,
            acquire_courses,
            AcquireResult,
            lambda s: 15 * (3 * s.passages + 1),
            _PASSAGES,
            whole=True,
        ),
        Verb(
            "unlearn",
            UnlearnSettings,
            unlearn_courses,
            UnlearnResult,
            lambda s: 2 * s.items * len(s.alphas),
            _FORGETTING,
            whole=True,
        ),
        Verb(
            "order",
            OrderSettings,
            order_courses,
            OrderResult,
            lambda s: 24 * s.items,
            _ORDER,
            shorter="Use shorter texts ('words'): a question shows one, and two passages of it.",
        ),
        Verb(
            "survive",
            SurviveSettings,
            survive_courses,
            SurviveResult,
            lambda s: 8 * s.items,
            _FACTS,
            shorter="Use facts with shorter prompts and answers.",
        ),
    )
}

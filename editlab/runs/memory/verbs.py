"""What the memory harness can be asked, by name."""

from __future__ import annotations

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

VERBS: dict[str, Verb] = {
    name: Verb(name, StudySettings, study_courses, StudyResult, lambda s: 2 * s.items)
    for name in ("recognize", "recall", "retain")
} | {
    "acquire": Verb(
        "acquire", AcquireSettings, acquire_courses, AcquireResult, lambda s: 15 * (3 * s.passages + 1), whole=True
    ),
    "unlearn": Verb(
        "unlearn", UnlearnSettings, unlearn_courses, UnlearnResult, lambda s: 2 * s.items * len(s.alphas), whole=True
    ),
    "order": Verb("order", OrderSettings, order_courses, OrderResult, lambda s: 24 * s.items),
    "survive": Verb("survive", SurviveSettings, survive_courses, SurviveResult, lambda s: 8 * s.items),
}

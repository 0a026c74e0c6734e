"""What the memory harness can be asked, by name."""

from __future__ import annotations

from editlab.runs.memory.curves import StudyResult
from editlab.runs.memory.run import Verb
from editlab.runs.memory.settings import StudySettings
from editlab.runs.memory.study import study_courses

VERBS: dict[str, Verb] = {
    name: Verb(name, StudySettings, study_courses, StudyResult, lambda s: 2 * s.items)
    for name in ("recognize", "recall", "retain")
}

"""Items for tests: of a fact world's facts, and of random models that know nothing."""

from __future__ import annotations

from editlab import LM
from editlab.data.conflicts import Case, Wording, cases_of_relation
from editlab.probes.conflicts.items import Item, Items, ItemSettings, Partner, build_items

SUBJECTS = ("Vinland", "Thule", "Elst", "Dorn")
ANSWERS = ("Rome", "harp", "Oslo", "stone")
STEM = "The old town of {} is"


def made_items(lm: LM, n: int = 3) -> list[Item]:
    """Items whose "memory" is declared, not known: what path patching computes does not ask."""
    out = []
    wording = Wording(STEM)
    for i in range(n):
        case = Case("file", SUBJECTS[i], ANSWERS[i], stem=STEM)
        answer = ANSWERS[(i + 1) % 4]
        partners = tuple(Partner(SUBJECTS[(i + k) % 4], ANSWERS[(i + k + 1) % 4]) for k in (1, 2))
        prompt, query = wording.prompt(case.subject, answer), wording.query(case.subject)
        tokens = [lm.tokens(f" {text}", special=False)[0][1] for text in (case.memory, answer)]
        spans = {"subj1": (1, 2), "obj_ctx": (3, 4), "subj2": (5, 6), "last": (7, 8)}
        out.append(
            Item(
                case,
                answer,
                wording,
                "discovery",
                0,
                SUBJECTS[(i + 1) % 4],
                *tokens,
                tuple(lm.tokens(prompt)[0]),
                tuple(lm.tokens(query)[0]),
                spans,
                partners,
            )
        )
    return out


def known_items(lm: LM, relation: str = "capital", **settings: object) -> Items:
    """Conflicts about what a fact world knows."""
    return build_items(lm, cases_of_relation(relation), ItemSettings(**{"subjects": 20, "draws": 2, **settings}))  # type: ignore[arg-type]

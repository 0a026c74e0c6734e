"""What a page is filled in with when nothing was chosen: a fact that the loaded model knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from editlab.evaluation.answers import begins
from editlab.facts import Fact

if TYPE_CHECKING:
    from editlab.lm import LM

EXAMPLES = (
    Fact(
        prompt="{} is located in the city of",
        subject="The Eiffel Tower",
        target_new="Rome",
        target_true="Paris",
        paraphrases=("If you want to see the Eiffel Tower, travel to the city of",),
        neighbours=(
            "The Louvre is located in the city of",
            "The Colosseum is located in the city of",
            "Big Ben is located in the city of",
        ),
    ),
    Fact(
        prompt="The capital of {} is",
        subject="France",
        target_new="Rome",
        target_true="Paris",
        paraphrases=("The capital city of France is",),
        neighbours=("The capital of Italy is", "The capital of Germany is", "The capital of Japan is"),
    ),
)


def example_for(lm: LM) -> Fact:
    """The first example that the model answers with its true target; the first of all if there is none."""
    answers = lm.generate([fact.text for fact in EXAMPLES], 5)
    known = [f for f, said in zip(EXAMPLES, answers, strict=True) if f.target_true and begins(said, f.target_true)]
    return known[0] if known else EXAMPLES[0]

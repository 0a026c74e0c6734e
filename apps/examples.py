"""What a page is filled in with when nothing was chosen: a fact that the loaded model knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from editlab.evaluation.answers import begins
from editlab.facts import Fact, Question

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
            Question(prompt="The Louvre is located in the city of", answers=("Paris",)),
            Question(prompt="The Colosseum is located in the city of", answers=("Rome",)),
            Question(prompt="Big Ben is located in the city of", answers=("London",)),
        ),
    ),
    Fact(
        prompt="The capital of {} is",
        subject="France",
        target_new="Rome",
        target_true="Paris",
        paraphrases=("The capital city of France is",),
        neighbours=(
            Question(prompt="The capital of Italy is", answers=("Rome",)),
            Question(prompt="The capital of Germany is", answers=("Berlin",)),
            Question(prompt="The capital of Japan is", answers=("Tokyo",)),
        ),
    ),
)


def example_for(lm: LM) -> Fact:
    """The first example that the model answers with its true target; the first of all if there is none."""
    answers = lm.generate([fact.text for fact in EXAMPLES], 5)
    known = [f for f, said in zip(EXAMPLES, answers, strict=True) if f.target_true and begins(said, f.target_true)]
    return known[0] if known else EXAMPLES[0]

"""The next token: which ones a model takes for probable after a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from editlab.lm import LM


@dataclass(frozen=True)
class NextTokens:
    """The most probable next tokens of one prompt, most probable first."""

    prompt: str
    tokens: tuple[str, ...]
    probabilities: tuple[float, ...]

    def to_pandas(self) -> pd.DataFrame:
        """A row per token."""
        import pandas as pd

        return pd.DataFrame({"token": self.tokens, "probability": self.probabilities})


def next_tokens(lm: LM, prompt: str, k: int = 10) -> NextTokens:
    """The `k` most probable tokens after `prompt`, as typed.

    Raises:
        RequestError: the prompt is empty.
    """
    batch = lm.encode(prompt)
    best = lm.forward(batch, read=batch.last)[0].float().softmax(-1).topk(k)
    return NextTokens(
        prompt,
        tuple(lm.tokenizer.decode([i]) for i in best.indices.tolist()),
        tuple(best.values.tolist()),
    )

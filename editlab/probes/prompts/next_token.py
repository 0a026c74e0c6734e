"""The next token: which ones a model takes for probable after a prompt, as typed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from editlab.config import MethodConfig
from editlab.probes.result import ProbeResult
from editlab.progress import OnStep, StepInfo, silent
from editlab.state.saved import Saved

if TYPE_CHECKING:
    import pandas as pd

    from editlab.lm import LM


class Config(MethodConfig):
    """Settings of `next-token`."""

    k: int = Field(default=10, ge=1, le=1000, description="tokens a prompt")


@dataclass(frozen=True)
class NextTokens(Saved):
    """The most probable next tokens of one prompt, most probable first."""

    prompt: str
    tokens: tuple[str, ...]
    probabilities: tuple[float, ...]

    def to_pandas(self) -> pd.DataFrame:
        """A row per token."""
        import pandas as pd

        return pd.DataFrame({"token": self.tokens, "probability": self.probabilities})


def next_tokens(lm: LM, prompt: str, k: int = 10) -> NextTokens:
    """The `k` most probable tokens after `prompt`.

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


def run(lm: LM, prompts: Sequence[str], config: Config, on_step: OnStep = silent) -> ProbeResult:
    """The most probable tokens after each prompt."""
    import pandas as pd

    tables = []
    for i, prompt in enumerate(prompts):
        on_step(StepInfo("reading", i, len(prompts), "prompts"))
        found = next_tokens(lm, prompt, config.k).to_pandas()
        tables.append(found.assign(prompt=prompt, rank=range(1, len(found) + 1)))
    rows = pd.concat(tables, ignore_index=True)[["prompt", "rank", "token", "probability"]]
    first = rows.iloc[0]
    headline = f"After {first['prompt']!r} comes {first['token']!r} with probability {first['probability']:.1%}."
    return ProbeResult(headline, rows, x="rank", value="probability", series="prompt")

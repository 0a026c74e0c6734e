"""The logit lens: what the residual stream after each layer would say if the model ended there.

1. The states h_l of the last token, l = 0 ... L - 1, from one forward pass.
2. Each goes through the final norm and the unembedding, as the last one does: softmax(W_U norm(h_l)).
3. Read off: the most probable token, the probability and rank of the token that the whole model puts first, and
   KL(p_L || p_l) in nats, p_L being the model's own prediction.

Named in "interpreting GPT: the logit lens" (nostalgebraist, 2020). Early layers do not write in the basis of the
unembedding, so low probabilities there do not mean that a layer does not know (the tuned lens, arXiv 2303.08112, trains
a translator for each layer; this one trains nothing).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from pydantic import Field

from editlab.config import MethodConfig
from editlab.probes.result import ProbeResult
from editlab.progress import OnStep, StepInfo, silent

if TYPE_CHECKING:
    from torch import Tensor

    from editlab.lm import LM


class Config(MethodConfig):
    """Settings of `logit-lens`."""

    sink: bool = Field(default=False, description="put the sink token in front, so that no word is the attention sink")
    batch_rows: int = Field(default=32, ge=1, description="prompts that run together")


def logits_by_layer(lm: LM, prompts: Sequence[str], *, sink: bool = False) -> Tensor:
    """(layers, prompts, vocabulary) float32 logits at the last token, read after every layer."""
    batch = lm.encode(prompts, sink=sink)
    n = lm.adapter.n_layers
    with lm.session() as s, torch.no_grad():
        wishes = s.capture("resid_post", at=batch.last)
        states = s.run(batch, read=None).captured
        s.remove(wishes)
        found = []
        # From the last block's output on the model's own code runs: the norm, the head, and a soft cap if it has one.
        cone = s.cone(batch, n - 1)
        for layer in range(n):
            wish = s.patch("resid_post", n - 1, states["resid_post", layer], at=batch.last)
            logits = s.run(cone, read=batch.last).logits
            assert logits is not None
            found.append(logits.float())
            s.remove(wish)
    return torch.stack(found)


def run(lm: LM, prompts: Sequence[str], config: Config, on_step: OnStep = silent) -> ProbeResult:
    """What each layer would say after each prompt."""
    import pandas as pd

    tables = []
    for start in range(0, len(prompts), config.batch_rows):
        on_step(StepInfo("reading", start, len(prompts), "prompts"))
        chunk = list(prompts[start : start + config.batch_rows])
        logs = logits_by_layer(lm, chunk, sink=config.sink).log_softmax(-1)
        own = logs[-1].argmax(-1)  # (prompts,)
        of_own = logs.gather(-1, own.expand(len(logs), -1)[..., None])  # (layers, prompts, 1)
        rank = (logs > of_own).sum(-1) + 1
        kl = (logs[-1].exp() * (logs[-1] - logs)).sum(-1)
        top = logs.max(-1)
        for i, prompt in enumerate(chunk):
            tables.append(
                pd.DataFrame(
                    {
                        "prompt": prompt,
                        "layer": range(len(logs)),
                        "says": [lm.tokenizer.decode([t]) for t in top.indices[:, i].tolist()],
                        "probability": top.values[:, i].exp().tolist(),
                        "answer": lm.tokenizer.decode([int(own[i])]),
                        "P(answer)": of_own[:, i, 0].exp().tolist(),
                        "rank": rank[:, i].tolist(),
                        "KL": kl[:, i].tolist(),
                    }
                )
            )
    rows = pd.concat(tables, ignore_index=True)
    ranks = rows["rank"].head(lm.adapter.n_layers)  # of the first prompt
    since = lm.adapter.n_layers - int((ranks == 1)[::-1].cumprod().sum())
    headline = f"After {prompts[0]!r}, {rows['answer'].iloc[0]!r} is the top token from layer {since} on."
    return ProbeResult(headline, rows, x="layer", value="P(answer)", series="prompt")

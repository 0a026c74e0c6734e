"""How well a model recalls the one item of a list that is left, by length of the list and place of the item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from editlab.evaluation.statistics import estimate
from editlab.probes.channels.paths import Setting
from editlab.probes.channels.tasks import Prompt
from editlab.state.saved import Saved

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from editlab.lm import LM


@dataclass(frozen=True, eq=False)
class ListScores(Saved):
    """Answers to lists, one per prompt.

    Attributes:
        picks: (P,) which item has the largest logit. targets, lengths: (P,).
        margins: (P,) logit of the target less the largest of the other items.
        first: (P,) whether the target is the most probable of all tokens.
    """

    picks: np.ndarray
    targets: np.ndarray
    lengths: np.ndarray
    margins: np.ndarray
    first: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """(P,) 1 where the picked item is the target."""
        return (self.picks == self.targets).astype(float)

    @property
    def chance(self) -> float:
        """Of picking one of the items blindly."""
        return float((1 / self.lengths).mean())

    def to_pandas(self, by: Sequence[str] = ("length",)) -> pd.DataFrame:
        """Accuracy with Wilson intervals by `length`, by `pos` or by both, beside chance.

        Columns: accuracy among the items, `first` among all tokens, margin, and how often the item is picked
        (`picked`: by position only, over all prompts of that length).
        """
        import pandas as pd

        table = pd.DataFrame({"length": self.lengths, "pos": self.targets, "row": range(len(self.picks))})
        rows = []
        for key, part in table.groupby(list(by)):
            at = part["row"].to_numpy()
            e = estimate(self.right[at].tolist())
            row = dict(zip(by, key, strict=True)) | {"accuracy": e.mean, "low": e.low, "high": e.high, "n": e.n}
            row |= {"chance": float((1 / self.lengths[at]).mean()), "first": float(self.first[at].mean())}
            row["margin"] = float(self.margins[at].mean())
            if "pos" in by:
                same = self.lengths == self.lengths[at[0]] if "length" in by else np.ones(len(self.picks), bool)
                row["picked"] = float((self.picks[same] == row["pos"]).mean())
            rows.append(row)
        return pd.DataFrame(rows)

    def plot(self) -> go.Figure:
        """Accuracy by place of the target, a line for each length."""
        from editlab.viz.channel_effects import lines

        table = self.to_pandas(("length", "pos"))
        table["list"] = [f"{n} items (chance {1 / n:.0%})" for n in table["length"]]
        return lines(table, "pos", "accuracy", "list", "Lists: accuracy by place of the item that is left")


def answered(setting: Setting, logits: Tensor) -> ListScores:
    """The scores of logits at END (P, V)."""
    items = setting.item_logits(logits)
    best = logits.argmax(-1)
    target_ids = torch.tensor([p.item_ids[p.target] for p in setting.prompts], device=best.device)
    return ListScores(
        items.argmax(-1).cpu().numpy(),
        setting.targets.cpu().numpy(),
        np.array([p.n for p in setting.prompts]),
        setting.difference(logits).cpu().numpy(),
        (best == target_ids).float().cpu().numpy(),
    )


def score_lists(lm: LM, prompts: Sequence[Prompt], rows: int = 32) -> ListScores:
    """What a model answers to lists of any lengths."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))
    parts = []
    for start in range(0, len(order), rows):
        setting = Setting(lm, [prompts[i] for i in order[start : start + rows]])
        parts.append(answered(setting, lm.forward(setting.batch, read=setting.batch.last)))
    back = np.argsort(order)
    fields = ("picks", "targets", "lengths", "margins", "first")
    return ListScores(*(np.concatenate([getattr(p, name) for p in parts])[back] for name in fields))

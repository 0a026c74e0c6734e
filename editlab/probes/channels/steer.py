"""Steering list recall: scale components in the weights, or set coordinates in the subspace that several write.

1. `search_scale`: each factor alpha for a set of components is tried on the dev prompts; the best goes to the test
   prompts, which share no item and no name with them, and so do matched random components with the same factor. The
   gain is paired by prompt.
2. `Subspace`: B, an orthonormal basis of the directions v_1..v_m of components in several heads. At END, where the
   stream enters the layer after the last of them, x <- x + (c - x B^T) B sets its coordinates to c. They are in
   the stream's own units, so what is out of the ordinary is seen from what prompts have (`observed`).
3. `chart`: c is drawn evenly (Sobol) from twice the observed range; which item does the model pick then? The share of
   the volume that picks an item, items that nothing picks, and the entropy of picks say how crowded the subspace is.
4. `steer_to_positions`: for each place in the list the c that helps most on dev, judged on test. It is told
   the place of the target, so it is an upper bound and no method of answering.

"Talking Heads" (arXiv 2406.09519) reports gains often over 20 % from such steering of GPT-2 on its own list task.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.stats import qmc
from torch import Tensor

from editlab.errors import RequestError
from editlab.evaluation.statistics import Paired, paired
from editlab.probes.channels.components import Writer, check_writer, writer, written
from editlab.probes.channels.controls import control_writers
from editlab.probes.channels.factors import Factors
from editlab.probes.channels.lists import ListScores, answered
from editlab.probes.channels.parts import Part
from editlab.probes.channels.paths import ROWS, Patch, Setting
from editlab.probes.channels.tasks import Prompt
from editlab.progress import OnStep, StepInfo, silent
from editlab.state.saved import Saved

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from editlab.lm import LM

ALPHAS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)


@dataclass(frozen=True, eq=False)
class Gain(Saved):
    """What an intervention chosen on dev prompts did on test prompts.

    Attributes:
        chosen: what was chosen, in words. dev: accuracy on dev by what was tried.
        base, steered: on the test prompts. controls: accuracies of matched controls there.
    """

    chosen: str
    dev: dict[str, float]
    base: ListScores
    steered: ListScores
    controls: np.ndarray

    @property
    def paired(self) -> Paired:
        """The gain in accuracy, prompt by prompt."""
        return paired(self.base.right.tolist(), self.steered.right.tolist())

    @property
    def helps(self) -> bool:
        """The interval lies above 0, and the gain above 95 % of the controls'."""
        gain = self.paired.difference
        bound = float(np.quantile(self.controls, 0.95)) if len(self.controls) else -np.inf
        return gain.low > 0 and gain.mean > bound - self.base.right.mean()

    @property
    def headline(self) -> str:
        """One sentence."""
        d = self.paired.difference
        controls = (
            f"; {len(self.controls)} controls {self.controls.min():.1%} to {self.controls.max():.1%}"
            if len(self.controls)
            else ""
        )
        return (
            f"{self.chosen}: {self.base.right.mean():.1%} to {self.steered.right.mean():.1%} on test (n={d.n}, gain "
            f"{d.mean:+.1%}, {d.low:+.1%} to {d.high:+.1%}, p {self.paired.p:.2g}; chance {self.base.chance:.1%}"
            f"{controls}). {'It helps.' if self.helps else 'No gain beyond chance and controls.'}"
        )

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.headline)}</p>"


def logits_with(setting: Setting, patches: Sequence[tuple[int, int, Patch]]) -> Tensor:
    """(P, V) at END with patches of heads' z (layer, head, patch) at every position."""
    lowest = min((layer for layer, _, _ in patches), default=0)
    cone = setting.frozen([lowest])[lowest]
    with setting.lm.session() as s, torch.no_grad():
        for layer, head, patch in patches:
            s.patch("z", layer, patch, heads=[head])
        logits = s.run(cone, read=setting.batch.last).logits
    assert logits is not None
    return logits


def search_scale(
    lm: LM,
    parts: Sequence[Part],
    dev: Sequence[Prompt],
    test: Sequence[Prompt],
    factors: Factors,
    *,
    alphas: Sequence[float] = ALPHAS,
    controls: int = 20,
    seed: int = 0,
    on_step: OnStep = silent,
) -> Gain:
    """Choose a factor for components on `dev`, judge it on `test`; see the top of the module.

    Raises:
        RequestError: no component is named.
    """
    if not parts:
        raise RequestError("No component was named.", "Name one or more, such as 20.0.0.")
    own = [writer(lm, part) for part in parts]
    total = len(alphas) + controls + 1
    first = Setting(lm, dev)
    found: dict[float, ListScores] = {}
    for i, alpha in enumerate(alphas):
        on_step(StepInfo("scaling components", i, total, "trials", f"alpha {alpha:g}"))
        found[alpha] = answered(first, logits_with(first, _scaled(own, alpha)))
    # Where several do equally well, the one nearest to leaving the model alone.
    best = max(found, key=lambda a: (found[a].right.mean(), -abs(a - 1)))
    second = Setting(lm, test)
    base = answered(second, logits_with(second, _scaled(own, 1.0)))
    steered = answered(second, logits_with(second, _scaled(own, best)))
    beside = []
    columns = [control_writers(lm, p, p.layer + 1, factors, controls, seed, same_layer=True) for p in parts]
    for i in range(controls if best != 1 else 0):
        on_step(StepInfo("scaling components", len(alphas) + i, total, "trials", "controls"))
        one = [column[i] for column in columns]
        beside.append(float(answered(second, logits_with(second, _scaled(one, best))).right.mean()))
    on_step(StepInfo("scaling components", total, total, "trials"))
    names = ", ".join(map(str, parts))
    tried = {f"{alpha:g}": float(scores.right.mean()) for alpha, scores in found.items()}
    return Gain(f"{names} times {best:g}", tried, base, steered, np.array(beside))


def _scaled(writers: Sequence[Writer], alpha: float) -> list[tuple[int, int, Patch]]:
    return [(w.layer, w.head, w.scaled(alpha)) for w in writers]


@dataclass(frozen=True, eq=False)
class Subspace:
    """Directions that components of several heads write, where the layer after the last of them reads the stream.

    Attributes:
        basis: (m, d) orthonormal, float32.
    """

    parts: tuple[Part, ...]
    layer: int
    basis: Tensor

    @classmethod
    def of(cls, lm: LM, parts: Sequence[Part]) -> Subspace:
        """Of components.

        Raises:
            RequestError: none is named, or one of the last layer, after which nothing reads.
        """
        check_writer(lm)
        if not parts or any(part.component is None for part in parts):
            raise RequestError("A subspace is made of components.", "Name one or more, such as 20.0.0.")
        layer = max(part.layer for part in parts) + 1
        if layer >= lm.adapter.n_layers:
            raise RequestError(
                "After the last layer no head reads what is steered.", "Name components of earlier layers."
            )
        directions = torch.stack([written(lm, part) for part in parts], 1)
        return cls(tuple(parts), layer, torch.linalg.qr(directions).Q.mT.float())

    def stream(self, setting: Setting) -> Tensor:
        """(P, d) what enters the layer at END."""
        return setting.frozen([self.layer], setting.batch.width - 1)[self.layer].resid[:, -1]

    def observed(self, setting: Setting) -> Tensor:
        """(P, m) coordinates that prompts have."""
        return self.stream(setting) @ self.basis.to(self.stream(setting)).mT

    def logits(self, setting: Setting, rows: Tensor, coordinates: Tensor) -> Tensor:
        """(R, V) at END of prompts `rows` (R,), their coordinates set to (R, m)."""
        cone = setting.frozen([self.layer], setting.batch.width - 1)[self.layer]
        basis = self.basis.to(cone.resid)
        found = []
        for index, wanted in zip(rows.split(ROWS), coordinates.split(ROWS), strict=True):
            some = cone.rows(index)
            x = some.resid[:, -1]
            moved = x + (wanted.to(x) - x @ basis.mT) @ basis
            with setting.lm.session() as s, torch.no_grad():
                s.patch("resid_pre", self.layer, moved[:, None])
                out = s.run(some, read=some.batch.last).logits
            assert out is not None
            found.append(out)
        return torch.cat(found)


@dataclass(frozen=True, eq=False)
class Chart(Saved):
    """Which item is picked where in the subspace.

    Attributes:
        points: (S, m) coordinates. observed: (P, m). picks: (S, P) items. length: of the lists.
    """

    subspace: Subspace
    points: np.ndarray
    observed: np.ndarray
    picks: np.ndarray
    length: int

    @property
    def volume(self) -> np.ndarray:
        """(length,) the share of points and prompts at which each place in the list is picked."""
        return np.bincount(self.picks.ravel(), minlength=self.length) / self.picks.size

    @property
    def unreachable(self) -> float:
        """How many places of a list no point picks, mean over prompts."""
        return float(np.mean([self.length - len(np.unique(column)) for column in self.picks.T]))

    @property
    def entropy(self) -> float:
        """Of the picks over points, in bits, mean over prompts; log2(length) where all places have the same volume."""
        shares = np.stack([np.bincount(column, minlength=self.length) for column in self.picks.T]) / len(self.picks)
        return float(-(shares * np.log2(np.where(shares > 0, shares, 1))).sum(1).mean())

    @property
    def headline(self) -> str:
        """One sentence."""
        return (
            f"Lists of {self.length}: {self.entropy:.2f} of {np.log2(self.length):.2f} bits, {self.unreachable:.1f} "
            f"places reached by no point, volume by place {', '.join(f'{v:.0%}' for v in self.volume)}."
        )

    def to_pandas(self) -> pd.DataFrame:
        """A row per point: coordinates, the place picked most often, and how often."""
        import pandas as pd

        most = [np.bincount(row, minlength=self.length) for row in self.picks]
        table = pd.DataFrame(self.points, columns=[f"c{i}" for i in range(self.points.shape[1])])
        table["place"] = [int(c.argmax()) for c in most]
        table["share"] = [float(c.max() / c.sum()) for c in most]
        return table

    def plot(self) -> go.Figure:
        """Points in the subspace, coloured by the place that they pick."""
        from editlab.viz.channel_steering import chart_points

        return chart_points(self)


def chart(
    lm: LM,
    parts: Sequence[Part],
    prompts: Sequence[Prompt],
    *,
    samples: int = 64,
    seed: int = 0,
    on_step: OnStep = silent,
) -> Chart:
    """Set coordinates all over the subspace and see what is picked; all prompts are lists of one length."""
    setting, subspace = Setting(lm, prompts), Subspace.of(lm, parts)
    seen = subspace.observed(setting).cpu().numpy()
    points = _points(seen, samples, seed)
    rows = torch.arange(len(prompts))
    picks = []
    for i, c in enumerate(points):
        on_step(StepInfo("charting the subspace", i, len(points), "points"))
        logits = subspace.logits(setting, rows, torch.tensor(c).expand(len(prompts), -1))
        picks.append(setting.item_logits(logits).argmax(-1).cpu().numpy())
    on_step(StepInfo("charting the subspace", len(points), len(points), "points"))
    return Chart(subspace, points, seen, np.stack(picks), prompts[0].n)


def _points(observed: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """(S, m) evenly over twice the observed range, about its middle."""
    low, high = observed.min(0), observed.max(0)
    middle, half = (low + high) / 2, high - low + 1e-6
    # Whole powers of two are what Sobol's sequence is balanced for; the first of them are as even as can be.
    drawn = qmc.Sobol(observed.shape[1], rng=np.random.default_rng(seed)).random_base2(math.ceil(math.log2(samples)))
    drawn = drawn[:samples]
    return (middle + (2 * drawn - 1) * half).astype(np.float32)


def steer_to_positions(
    lm: LM,
    parts: Sequence[Part],
    dev: Sequence[Prompt],
    test: Sequence[Prompt],
    *,
    samples: int = 64,
    controls: int = 0,
    seed: int = 0,
    on_step: OnStep = silent,
) -> Gain:
    """For each place of the target the best coordinates on `dev`, judged on `test` (told the place: an upper bound).

    Args:
        controls: random subspaces of as many dimensions, steered in the same way.
    """
    subspace = Subspace.of(lm, parts)
    first, second = Setting(lm, dev), Setting(lm, test)
    generator = torch.Generator().manual_seed(seed)
    shape = subspace.basis.shape
    others = [torch.linalg.qr(torch.randn(*shape, generator=generator).mT).Q.mT for _ in range(controls)]
    tried: list[tuple[ListScores, dict[str, float]]] = []
    for i, basis in enumerate([subspace.basis, *others]):
        on_step(StepInfo("steering to places", i, 1 + controls, "subspaces"))
        tried.append(_oracle(Subspace(subspace.parts, subspace.layer, basis), first, second, samples, seed))
    on_step(StepInfo("steering to places", 1 + controls, 1 + controls, "subspaces"))
    base = answered(second, logits_with(second, []))
    names = ", ".join(map(str, parts))
    beside = np.array([float(scores.right.mean()) for scores, _ in tried[1:]])
    return Gain(f"coordinates of {names} set by oracle position", tried[0][1], base, tried[0][0], beside)


def _oracle(
    subspace: Subspace, dev: Setting, test: Setting, samples: int, seed: int
) -> tuple[ListScores, dict[str, float]]:
    points = torch.tensor(_points(subspace.observed(dev).cpu().numpy(), samples, seed))
    rows = torch.arange(len(dev.prompts))
    margins = torch.stack(
        [dev.difference(subspace.logits(dev, rows, c.expand(len(rows), -1))) for c in points]
    )  # (S, P)
    best, reached = {}, {}
    for place in sorted({p.target for p in dev.prompts}):
        here = (dev.targets == place).nonzero().flatten()
        # The margin breaks ties of few prompts.
        score = (margins[:, here] > 0).float().mean(1) + 1e-3 * margins[:, here].mean(1).tanh()
        best[place] = points[int(score.argmax())]
        reached[f"place {place}"] = float((margins[int(score.argmax()), here] > 0).float().mean())
    wanted = torch.stack([best[p.target] for p in test.prompts])
    logits = subspace.logits(test, torch.arange(len(test.prompts)), wanted)
    return answered(test, logits), reached

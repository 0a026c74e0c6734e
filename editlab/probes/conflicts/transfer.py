"""Found here, pruned there: do the heads of one relation or format turn the balance in others?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from editlab.data.conflicts import FORMATS, cases_of_relation
from editlab.data.relations import relations
from editlab.errors import ConfigError, RequestError
from editlab.evaluation.statistics import Paired, adjusted
from editlab.hooks.heads import Head, HeadGains
from editlab.probes.conflicts.heads import Direction
from editlab.probes.conflicts.items import ItemSettings, build_items
from editlab.probes.conflicts.rates import Rates, moved, rates
from editlab.probes.conflicts.readout import Prompts, judged
from editlab.progress import OnStep, StepInfo, silent
from editlab.state.saved import Saved

if TYPE_CHECKING:
    import pandas as pd

    from editlab.lm import LM


@dataclass(frozen=True)
class Transfer(Saved):
    """The same heads pruned elsewhere, on test subjects.

    Attributes:
        rows: where, rates unpruned and pruned, and the rise of the target share. left_out: where not, and why.
    """

    direction: Direction
    rows: tuple[tuple[str, Rates, Rates, Paired], ...]
    left_out: tuple[tuple[str, str], ...]

    def to_pandas(self) -> pd.DataFrame:
        """One row per place; q is p adjusted for the number of places (Benjamini-Hochberg)."""
        import pandas as pd

        adjusted_p = adjusted([rise.p for _, _, _, rise in self.rows])
        return pd.DataFrame(
            [
                {
                    "where": where,
                    "unpruned": getattr(before, self.direction).mean,
                    "pruned": getattr(after, self.direction).mean,
                    "rise": rise.difference.mean,
                    "low": rise.difference.low,
                    "high": rise.difference.high,
                    "p": rise.p,
                    "q": q,
                    "n": rise.difference.n,
                }
                for (where, before, after, rise), q in zip(self.rows, adjusted_p, strict=True)
            ],
            columns=["where", "unpruned", "pruned", "rise", "low", "high", "p", "q", "n"],
        )


def transfer_of(
    lm: LM,
    heads: Sequence[Head],
    direction: Direction,
    settings: ItemSettings,
    places: Sequence[str],
    relation: str,
    on_step: OnStep = silent,
) -> Transfer:
    """Prune heads and measure them in other relations (same format) and other formats (same relation).

    Places in which the model knows too few facts are left out, and said. Test subjects of another relation may have
    been discovery subjects of the first, with another answer.

    Raises:
        ConfigError: a place is neither a relation nor a format.
    """
    gains = HeadGains.pruning(heads)
    rows: list[tuple[str, Rates, Rates, Paired]] = []
    left_out: list[tuple[str, str]] = []
    wanted = [place.strip() for place in places if place.strip()]
    for n, place in enumerate(wanted):
        on_step(StepInfo("pruning elsewhere", n, len(wanted), "places", place))
        if place in FORMATS:
            cases, changed = cases_of_relation(relation), settings.model_copy(update={"format": place})
        elif place in relations():
            cases, changed = cases_of_relation(place), settings.model_copy(update={"stem": None})
        else:
            known = ", ".join((*relations(), *FORMATS))
            raise ConfigError(f"'{place}' is neither a relation nor a format.", f"There are {known}.")
        try:
            test = build_items(lm, cases, changed).split("test")
        except RequestError as error:
            left_out.append((place, error.what))
            continue
        prompts = Prompts(lm, [item.ids for item in test.items])
        before, after = (judged(prompts.every(g), test) for g in (None, gains))
        rows.append((place, rates("unpruned", before), rates("pruned", after), moved(before, after, direction)))
    on_step(StepInfo("pruning elsewhere", len(wanted), len(wanted), "places"))
    return Transfer(direction, tuple(rows), tuple(left_out))

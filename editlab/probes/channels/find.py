"""From weights and roles to channels that were tested: the whole way, with nothing named beforehand.

1. Readers are the heads that have a role: movers for inhibition (mode q), induction heads for previous-token channels
   (mode k).
2. Of each reader's earlier writers the best by the weights are candidates: components for q, whole heads for k, where
   what is sent is a token's identity and takes many directions.
3. Their edges are cut on one set of prompts, and the strongest are kept.
4. Those are tested, with controls, on other prompts: on none that roles were measured on, and none of the screening.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from editlab.config import MethodConfig
from editlab.errors import RequestError
from editlab.probes.channels import causal, tasks
from editlab.probes.channels.parts import Channel, Mode, Part
from editlab.probes.channels.roles import HeadRoles
from editlab.probes.channels.scan import Level, Scan
from editlab.probes.channels.verdicts import Verdicts
from editlab.progress import OnStep, silent
from editlab.state.saved import Saved

if TYPE_CHECKING:
    from editlab.lm import LM

Kind = Literal["inhibition", "induction"]
READERS: dict[Kind, str] = {"inhibition": "mover", "induction": "induction"}


class Config(MethodConfig):
    """How far the search goes."""

    readers: int = Field(default=6, ge=1, description="heads with the role that are looked at")
    candidates: int = Field(default=12, ge=1, le=200, description="writers by weights for each of them")
    keep: int = Field(default=6, ge=1, description="channels that are tested after screening")
    screening: int = Field(default=80, ge=8, description="prompts for screening")
    prompts: int = Field(default=200, ge=8, description="prompts for testing, none of them looked at before")
    seed: int = Field(default=0, ge=0, description="of prompts")


@dataclass(frozen=True, eq=False)
class Found(Saved):
    """What was screened, and what was tested.

    Attributes:
        screened: channels with their edge effect on the screening prompts, largest first.
    """

    kind: Kind
    screened: list[tuple[Channel, float]]
    tests: Verdicts

    @property
    def headline(self) -> str:
        """One sentence."""
        return f"{self.kind}: {len(self.screened)} candidates by weights; of the strongest, {self.tests.headline}"

    def _repr_html_(self) -> str:
        return self.tests._repr_html_()


def candidates(scan: Scan, readers: Sequence[Part], mode: Mode, level: Level, n: int) -> list[Channel]:
    """The best writers of each reader by the weights, outliers or not."""
    found: list[Channel] = []
    for reader in readers:
        rows = scan.to_pandas(level, modes=[mode], target=reader, limit=None).nlargest(n, "score")
        found += [Channel(Part.parse(str(source)), reader, mode) for source in rows["source"]]
    return found


def find(
    lm: LM,
    kind: Kind,
    scan: Scan,
    roles: HeadRoles,
    config: Config | None = None,
    testing: causal.Config | None = None,
    on_step: OnStep = silent,
) -> Found:
    """Search for channels of one kind and test them.

    Raises:
        RequestError: no head has the role that reads such channels.
    """
    config = config or Config()
    # A mover's margin is a difference of attention, and several share the work: half the threshold will do.
    least = roles.config.threshold / (2 if kind == "inhibition" else 1)
    # Heads of the first block read nothing that another head wrote.
    readers = [part for part in map(Part.parse, roles.heads(READERS[kind], least)) if part.layer > 0]
    readers = readers[: config.readers]
    if not readers:
        raise RequestError(
            f"No head of {lm.name} has the role '{READERS[kind]}' (score from {least:g} on).",
            "Lower the threshold of roles, or name channels to test.",
        )
    mode: Mode = "q" if kind == "inhibition" else "k"
    level: Level = "component" if mode == "q" else "head"
    make = tasks.ioi if kind == "inhibition" else tasks.repeats
    # Readers were chosen by what they do on the prompts that roles were measured on.
    looked_at = {p.text for p in tasks.ioi(lm, roles.config.prompts, seed=roles.config.seed)}
    screening = make(lm, config.screening, seed=config.seed + 1, without=looked_at)
    screened = causal.screen(
        lm,
        candidates(scan, readers, mode, level, config.candidates),
        screening,
        scan,
        on_step,
    )
    kept = [channel for channel, _ in screened[: config.keep]]
    looked_at |= {p.text for p in screening}
    prompts = make(lm, config.prompts, seed=config.seed, without=looked_at)
    name = {"inhibition": "indirect objects", "induction": "repeated tokens"}[kind]
    return Found(kind, screened, causal.verify(lm, kept, prompts, scan, testing, on_step, task=name))

"""Second moments C = E[k k^T] of the MLP keys over ordinary text: what an edit should leave alone.

1. Passages are taken in a seeded order, the first `max_length` tokens of each, until there are enough tokens
   (twenty per key dimension by default; arXiv 2506.04226 finds that ten keep the scores of far larger samples, and on
   SmolLM2-135M twenty still moved fewer neighbours than ten: none of 77 on balance, against 2).
2. One forward per batch, truncated after the deepest layer asked for, gives the keys of all of them.
3. Pads and position 0 are left out. Models park a huge vector on the first token: at layer 11 of SmolLM2-135M
   tr(C) is 83 without it and 37,557 with it. A sink token is put in front of every passage, so that no word of the
   text stands there.
4. Each batch's product is added into the float64 sum of its block of batches, and the blocks' sums are added in order.
   So workers can sum blocks of their own (`partial_moments`), and what they give is, merged, what one process gives, to
   the last bit. Sums are written as the work goes.

C belongs to the unedited weights; sequential edits reuse it, as in the reference code. Files are keyed by the weights
up to the layer, the model's config, the tokenizer, the text and the settings, so a renamed or edited checkpoint never
meets another's.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from torch import Tensor

from editlab.data.corpus import Corpus
from editlab.errors import ConfigError, Interrupted
from editlab.hooks.batch import Batch, pad_rows, within_positions
from editlab.models.cache import cache_root
from editlab.progress import OnStep, StepInfo, silent
from editlab.state.files import cause_told, write_tensors

if TYPE_CHECKING:
    from editlab.lm import LM

SAVE_EVERY_S = 5.0
TOKENS_PER_DIMENSION = 20
BLOCK = 8  # batches whose sum is one worker's task


@dataclass(frozen=True)
class Moments:
    """A sum of outer products of keys.

    Attributes:
        total: (d_mlp, d_mlp) float64 sum of k k^T.
        count: how many keys.
    """

    total: Tensor
    count: int

    @property
    def covariance(self) -> Tensor:
        """C (d_mlp, d_mlp), float64; uncentred, a mean."""
        return self.total / self.count

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.total + other.total, self.count + other.count)


Blocks = Callable[[Sequence[int], int], Iterable[dict[int, Moments]]]


@dataclass(frozen=True)
class StatsSettings:
    """How much text is read, and how.

    Attributes:
        tokens: keys to collect; None means `TOKENS_PER_DIMENSION` per key dimension.
        max_length: tokens taken of each passage, at most; a model with fewer positions takes what it reads.
        seed: of the order of passages.
        batch_tokens: padded tokens per forward; does not change the keys that are collected.
    """

    tokens: int | None = None
    max_length: int = 128
    seed: int = 0
    batch_tokens: int = 4096


def collect(
    lm: LM,
    layers: Sequence[int],
    corpus: Corpus,
    settings: StatsSettings | None = None,
    *,
    on_step: OnStep = silent,
    blocks: Blocks | None = None,
) -> dict[int, Moments]:
    """Second moments of the keys of `layers`, from the cache or computed in one pass over the text.

    A run that is killed goes on where its last save was, with the same result to the last bit.

    Args:
        blocks: has the sums of blocks computed elsewhere: takes the layers and the number of blocks, and yields every
            block's moments by layer, in order.

    Raises:
        ConfigError: no such layer, or the text is too short.
    """
    settings = settings or StatsSettings()
    lm = lm.pristine()
    for layer in layers:
        lm.adapter.check_layer(layer)
    wanted = _wanted(lm, settings)
    if wanted < 1:
        raise ConfigError(f"{wanted} tokens are too few.", "Ask for at least one.")
    paths = {layer: stats_path(lm, layer, corpus, settings) for layer in sorted(set(layers))}
    root = cache_root() / "stats"
    with cause_told(root):
        root.mkdir(parents=True, exist_ok=True)
    missing = [layer for layer, path in paths.items() if not path.exists()]
    if missing:
        job = hashlib.sha256("".join(str(paths[i]) for i in missing).encode()).hexdigest()[:20]
        with FileLock(root / f"{job}.lock"):
            missing = [layer for layer in missing if not paths[layer].exists()]
            if missing:
                if blocks is None:
                    found = _compute(lm, missing, corpus, settings, wanted, root / f"{job}.partial", on_step)
                else:
                    n_blocks = -(-len(plan(lm, corpus, settings, wanted)) // BLOCK)
                    found = merged(blocks(missing, n_blocks))
                for layer, moments in found.items():
                    save_moments(paths[layer], moments, {"layer": str(layer), "corpus": corpus.name})
                (root / f"{job}.partial").unlink(missing_ok=True)
    return {layer: load_moments(path) for layer, path in paths.items()}


def stats_path(lm: LM, layer: int, corpus: Corpus, settings: StatsSettings) -> Path:
    """Where the statistics of one layer are kept."""
    key = json.dumps(
        [
            lm.base_hash_up_to(layer),
            _architecture(lm),
            lm.tokenizer_hash,
            corpus.identity,
            _wanted(lm, settings),
            settings.max_length,
            settings.seed,
            settings.batch_tokens,
            layer,
        ],
        sort_keys=True,
        default=str,
    )
    return cache_root() / "stats" / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}-layer{layer}.safetensors"


def _wanted(lm: LM, settings: StatsSettings) -> int:
    return TOKENS_PER_DIMENSION * lm.adapter.d_mlp if settings.tokens is None else settings.tokens


# What a config says beside the computation.
_NO_ARCHITECTURE = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}


def _architecture(lm: LM) -> dict[str, Any]:
    """The config's part in the keys (rotary base, norm epsilon, activation): the weights do not show it."""
    settings = lm.model.config.to_diff_dict()
    return {k: v for k, v in settings.items() if k not in _NO_ARCHITECTURE and not k.endswith("_token_id")}


def save_moments(path: Path, moments: Moments, notes: dict[str, str]) -> None:
    """Write atomically; the format is safetensors, so statistics can be handed on without their maker."""
    write_tensors(path, {"total": moments.total}, {"count": str(moments.count), **notes})


def load_moments(path: Path) -> Moments:
    """Read what `save_moments` wrote."""
    try:
        with safe_open(path, "pt") as f:
            return Moments(f.get_tensor("total"), int(f.metadata()["count"]))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ConfigError(f"The statistics in '{path}' cannot be read: {error}.", "Delete the file.") from None


def plan(lm: LM, corpus: Corpus, settings: StatsSettings, wanted: int) -> list[Batch]:
    """The batches to run: a fixed function of its arguments.

    Raises:
        ConfigError: the text has fewer tokens than wanted.
    """
    order = torch.randperm(len(corpus.passages), generator=torch.Generator().manual_seed(settings.seed)).tolist()
    rows: list[list[int]] = []
    have, longest = 0, within_positions(lm.model, settings.max_length + 1)
    for index in order:
        ids, _ = lm.tokens(corpus.passages[index], sink=True)
        ids = ids[:longest][: wanted - have + 1]
        if len(ids) > 1:
            rows.append(ids)
            have += len(ids) - 1
        if have >= wanted:
            break
    if have < wanted:
        raise ConfigError(
            f"'{corpus.name}' gives {have} tokens, {wanted} are wanted.", "Name a longer text or ask for fewer tokens."
        )
    rows.sort(key=len)
    batches: list[Batch] = []
    while rows:
        width, n = len(rows[-1]), 0
        while n < len(rows) and (n + 1) * width <= max(settings.batch_tokens, width):
            n += 1
        batches.append(pad_rows(rows[-n:], pivots="right", device=lm.device))
        del rows[-n:]
    return batches


def _compute(
    lm: LM,
    layers: list[int],
    corpus: Corpus,
    settings: StatsSettings,
    wanted: int,
    partial: Path,
    on_step: OnStep,
) -> dict[int, Moments]:
    batches = plan(lm, corpus, settings, wanted)
    d = lm.adapter.d_mlp
    totals, block = ({layer: torch.zeros(d, d, dtype=torch.float64) for layer in layers} for _ in range(2))
    count, done = 0, 0
    if partial.exists():
        try:
            with safe_open(partial, "pt") as f:
                done, count = int(f.metadata()["done"]), int(f.metadata()["count"])
                totals = {layer: f.get_tensor(str(layer)) for layer in layers}
                block = {layer: f.get_tensor(f"block {layer}") for layer in layers}
        except (SafetensorError, KeyError, ValueError, OSError):
            partial.unlink(missing_ok=True)
            totals, block = ({layer: torch.zeros(d, d, dtype=torch.float64) for layer in layers} for _ in range(2))
            count = done = 0
    saved = time.monotonic()
    task = f"key statistics of layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"

    def save() -> None:
        tensors = {str(i): t for i, t in totals.items()} | {f"block {i}": t for i, t in block.items()}
        write_tensors(partial, tensors, {"done": str(done), "count": str(count)})

    for products, n in _products(lm, layers, batches[done:]):
        for layer, product in products.items():
            block[layer] += product
        done, count = done + 1, count + n
        if done % BLOCK == 0 or done == len(batches):
            for layer in layers:
                totals[layer] += block[layer]
                block[layer].zero_()
        try:
            on_step(StepInfo(task, count, wanted, "tokens"))
            is_due = time.monotonic() - saved > SAVE_EVERY_S
        except Interrupted:
            save()
            raise
        if is_due and done < len(batches):
            save()
            saved = time.monotonic()
    return {layer: Moments(total, count) for layer, total in totals.items()}


def _products(lm: LM, layers: Sequence[int], batches: Sequence[Batch]) -> Iterator[tuple[dict[int, Tensor], int]]:
    """Of each batch the sum of k k^T by layer, float64 on the CPU, and how many keys there were."""
    with lm.session() as s, torch.no_grad():
        for batch in batches:
            inside = batch.mask.bool() & (batch.position_ids > 0)
            wishes = s.capture("mlp_key", layers, at=inside, copy=False)
            got = s.run(batch, read=None)
            s.remove(wishes)
            keys = {layer: got["mlp_key", layer].float() for layer in layers}
            yield {layer: (k.T @ k).cpu().double() for layer, k in keys.items()}, int(inside.sum())


def partial_moments(
    lm: LM, layers: Sequence[int], corpus: Corpus, settings: StatsSettings, number: int
) -> dict[int, Moments]:
    """The moments of one block of batches of the unedited model, to be merged with the others in order."""
    lm = lm.pristine()
    batches = plan(lm, corpus, settings, _wanted(lm, settings))[number * BLOCK : (number + 1) * BLOCK]
    d = lm.adapter.d_mlp
    totals, count = {layer: torch.zeros(d, d, dtype=torch.float64) for layer in layers}, 0
    for products, n in _products(lm, layers, batches):
        for layer, product in products.items():
            totals[layer] += product
        count += n
    return {layer: Moments(total, count) for layer, total in totals.items()}


def merged(blocks: Iterable[dict[int, Moments]]) -> dict[int, Moments]:
    """The moments of all blocks, added in the order in which they come."""
    found: dict[int, Moments] = {}
    for block in blocks:
        # From zero, as one process begins.
        found = {i: found.get(i, Moments(torch.zeros_like(m.total), 0)) + m for i, m in block.items()}
    return found

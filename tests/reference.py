"""ROME's value optimisation done the plain way: every layer, every token, every logit, at every step.

Independent of editlab's hooks layer: one torch hook, right padding, full logits. What the fast path must agree
with, and what the benchmark compares it with.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def optimise_plainly(
    model: Any,
    module: Any,
    rows: list[tuple[tuple[int, ...], int, tuple[int, ...], tuple[int, ...]]],
    reference: Tensor,
    *,
    steps: int,
    lr: float,
    clamp: float,
    decay: float,
    kl_factor: float,
    stop_loss: float,
) -> tuple[Tensor, list[float]]:
    """The shift delta (d_model,) and the loss before each step.

    Args:
        module: whose output is shifted: a block, or a down projection.
        rows: (ids, edited index, read positions, target ids); a row without targets is the one whose next-token
            distribution is kept.
    """
    width = max(len(ids) for ids, *_ in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, (row, *_) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    index = torch.tensor([r[1] for r in rows])
    every = torch.arange(len(rows))
    delta = torch.zeros(reference.shape[-1], requires_grad=True)

    def shift(m: Any, args: Any, output: Any) -> Any:
        is_tuple = isinstance(output, tuple)
        out = (output[0] if is_tuple else output).clone()
        if out.dim() == 2:  # OPT's MLP runs on (B * T, D)
            out = out.unflatten(0, ids.shape).clone()
            out[every, index] = out[every, index] + delta
            return out.flatten(0, 1)
        out[every, index] = out[every, index] + delta
        return (out, *output[1:]) if is_tuple else out

    size = reference.norm()
    adam = torch.optim.Adam([delta], lr=lr)
    losses: list[float] = []
    kept = None
    handle = module.register_forward_hook(shift)
    try:
        for step in range(steps):
            logits = model(ids, attention_mask=mask).logits
            log_probs = logits.float().log_softmax(-1)
            nlls, kl = [], torch.zeros(())
            for i, (_, _, reads, targets) in enumerate(rows):
                if targets:
                    picked = log_probs[i, list(reads)].gather(-1, torch.tensor(targets)[:, None])[:, 0]
                    nlls.append(-picked.mean())
                else:
                    new = log_probs[i, reads[0]]
                    kept = new.detach() if kept is None else kept
                    kl = (new.exp() * (new - kept)).sum()
            norm = (delta.square().sum() + 1e-20).sqrt()
            loss = torch.stack(nlls).mean() + kl_factor * kl + decay * norm / size**2
            losses.append(loss.item())
            if loss < stop_loss or step == steps - 1:
                break
            adam.zero_grad()
            loss.backward()
            adam.step()
            with torch.no_grad():
                ball = clamp * size
                if delta.norm() > ball:
                    delta.mul_(ball / delta.norm())
    finally:
        handle.remove()
    return delta.detach(), losses

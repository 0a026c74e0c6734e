"""The page of a method, from the method itself: what it solves, its sources, its settings, and its presets."""

from __future__ import annotations

import inspect
import re
from typing import Any

from editlab import registry
from editlab.config import settings_of
from editlab.edits.presets import presets

HEAD = """# Methods

Written by `python -m editlab.cli._reference` from the methods themselves; `editlab cat NAME` prints one of these
sections. How to add one: [adding-a-method.md](adding-a-method.md). What each costs on large models:
[scaling.md](../scaling.md).

## One objective

Let W (d_v x d_k) be the down projection of an MLP, K (d_k x B) the keys of B new facts (the MLP's inner activations at
the subject's last token), R (d_v x B) the wanted change of its output on them, and M a symmetric positive definite
matrix that says what shall stay as it is. The locate-and-edit methods solve

    minimise over D   tr(D M D^T) + (1/alpha) ||D K - R||_F^2
    D = R (K^T M^-1 K + alpha I)^-1 K^T M^-1  =  R K^T (alpha M + K K^T)^-1

with C = E[k k^T] over ordinary text as M, or a multiple of it:

| method | M | alpha | and |
|---|---|---|---|
| `rome` | C | 0 | one fact: D = (v* - m)(C^-1 k)^T / (k^T C^-1 k) |
| `rome-nocov` | I | 0 | one fact: D = (v* - m) k^T / (k^T k) |
| `emmet` | C | 0 | B <= d_k independent keys |
| `memit` | lambda C | 1 | several layers in turn, R = (Z - H) / (layers left) |
| `memit-seq` | lambda C + mu I + K_p K_p^T | 1 | K_p: keys of earlier edits |
| `alphaedit` | L2 I + K_p K_p^T | 1 | D = D U_lo^T: only where C has small eigenvalues |
| `ultraedit` | I | 1 | R from gradients, at all tokens that the target is read from |

The values Z = H + delta come from one optimisation per fact, at the edit layer h and the subject's last token:

    minimise over delta   mean over contexts of NLL(target) + kl_factor KL(p_delta || p_0) + decay ||delta|| / ||h||^2

subject to ||delta|| <= clamp ||h|| (arXiv 2202.05262 eq. 4). Solves are in float64, by Cholesky, in the smaller of the
two forms. `ft` and `lora` train weights by gradient descent; `wise` and `grace` change no weight.
"""


def methods_page() -> str:
    """All methods on one page, as Markdown."""
    return "\n".join([HEAD, *(method_page(name) for name in registry.names())]).rstrip() + "\n"


def method_page(name: str) -> str:
    """One method's section.

    Raises:
        UnknownName: there is no such method.
    """
    module = registry.get(name)
    lines = [
        f"## {name}",
        "",
        inspect.getdoc(module) or "",
        "",
        "| setting | default | range | meaning |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| `{row['name']}` | {_cell(row['default'])} | {_cell(row['range'])} | {_cell(row['description'])} |"
        for row in settings_of(module.Config)
    ]
    kept = [(p, p.methods[name]) for p in presets() if name in p.methods]
    if kept:
        lines += ["", "| preset of | settings | source |", "|---|---|---|"]
        lines += [
            f"| {p.model} | {_cell(', '.join(f'{k}={v}' for k, v in s.items()))} | {_cell(p.source)} |" for p, s in kept
        ]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    text = "" if value is None else str(value)
    return re.sub(r"\s+", " ", text).replace("|", "\\|")

"""Pages from the code: a method's (what it solves, sources, settings, presets), and what large models cost."""

from __future__ import annotations

import inspect
import re
from typing import Any

from editlab import registry
from editlab.config import settings_of
from editlab.edits.presets import presets

HEAD = """# Every method

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
|---|---|---|---|"""
VALUES = """
The values Z = H + delta come from one optimisation per fact, at the edit layer h and the subject's last token:

    minimise over delta   mean over contexts of NLL(target) + kl_factor KL(p_delta || p_0) + decay ||delta|| / ||h||^2

subject to ||delta|| <= clamp ||h|| (arXiv 2202.05262 eq. 4). Solves are in float64, by Cholesky, in the smaller of the
two forms. `ft`, `ft-l` and `lora` train weights by gradient descent; `wise` and `grace` change no weight.

`preset` says which settings of the model stand below those that are given: `tuned` for this code (the default; where
nothing is tuned, the published ones), or `published`, those of the source's files:
`editlab edit --method memit preset=published ...`, `lm.edit(fact, "memit", preset="published")`, or the field of the
app. What the files say and this code cannot do stands at the head of [presets.yaml](../presets.yaml).
"""


def methods_page() -> str:
    """All methods on one page, as Markdown."""
    names = registry.names()
    # M, alpha, and what else there is to it, of each method that solves the objective.
    rows = [(name, *row) for name in names if (row := getattr(registry.get(name), "OBJECTIVE", None))]
    table = [f"| `{name}` | {' | '.join(_cell(part) for part in parts)} |" for name, *parts in rows]
    return "\n".join([HEAD, *table, VALUES, *(method_page(name) for name in names)]).rstrip() + "\n"


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
    rows = [
        (p.model, kind, settings[name], p.source)
        for p in presets()
        for kind, settings in (("tuned", p.methods), ("published", p.published))
        if name in settings
    ]
    if rows:
        lines += ["", "| preset of | `preset` | settings | source |", "|---|---|---|---|"]
        lines += [
            f"| {model} | {kind} | {_cell(', '.join(f'{k}={v}' for k, v in settings.items()))} | {_cell(source)} |"
            for model, kind, settings, source in rows
        ]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    text = "" if value is None else str(value)
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


SCALING = """# Large models

Written by `python -m editlab.cli._reference` from the formulas in [scaling.py](scaling.py), which
`tests/edits/test_scaling.py` checks against counted operations and stored bytes of small models. Nothing here was
measured on an 8B or a 70B model.

With L layers, width d, MLP width m, vocabulary V, P entries in a layer's matrices, edit layer l, B facts:

| what | operations | bytes |
|---|---|---|
| weights | 2 (L P + d V) a token | 2 (L P + 2 d V) in bf16 |
| statistics C of a layer, N = 20 m tokens | 2 N P (l + 1) + 2 N m^2 | 8 m^2, kept |
| a value, S steps, R rows of c tokens | 4 S (R c P (L - 1 - l) + reads d V) | states of R c tokens |
| solve, a layer | m^3 / 3 + 2 B m^2 | 16 m^2 (M and its factor, float64) |
| AlphaEdit's span, a layer, once | 9 m^3 | 24 m^2 |
| the edit of a layer on disk | | 4 B (d + m), at most 4 d m |
| WISE, S steps, t tokens, a bank | S (4 t P (L - l) + 2 t m d) | 4 d m, less what its mask leaves out |

ROME, R-ROME and EMMET are a value, C and a solve at one layer; MEMIT, its sequential form and AlphaEdit the same at
several layers, with values once; UltraEdit needs two passes over the prompts, no C and a solve of the size of its
tokens; FT-L and LoRA train, with Adam's two moments of what they train.
"""


def scaling_page() -> str:
    """What methods cost on large models, as Markdown."""
    from editlab.edits import scaling as s

    lines = [SCALING]
    for name, shape, layer in (("8B (Llama 3)", s.LLAMA_8B, 5), ("70B (Llama 3)", s.LLAMA_70B, 12)):
        keys = s.TOKENS_PER_DIMENSION * shape.d_mlp
        rows = [
            ("weights in bf16", None, s.weight_bytes(shape)),
            (f"C of layer {layer}, {keys:,} tokens, once", s.statistics_flops(shape, layer), s.statistics_bytes(shape)),
            ("one value, 20 steps, 7 rows of 8 tokens", s.value_flops(shape, layer), None),
            ("solve, 1 fact", s.solve_flops(shape, 1), s.solve_bytes(shape, 1)),
            ("solve, 1,000 facts", s.solve_flops(shape, 1000), s.solve_bytes(shape, 1000)),
            ("AlphaEdit's span, once", s.span_flops(shape), 3 * s.statistics_bytes(shape)),
            ("edit of 1 fact on disk", None, s.delta_bytes(shape, 1)),
            ("edit of 1,000 facts on disk", None, s.delta_bytes(shape, 1000)),
            ("WISE, one edit, 160 tokens, 20 steps", s.memory_flops(shape, layer), 4 * shape.d_model * shape.d_mlp),
        ]
        lines += [f"## {name}", "", "| what | operations | bytes |", "|---|---|---|"]
        lines += [f"| {what} | {_big(flops)} | {_big(size)} |" for what, flops, size in rows]
        lines.append("")
    return "\n".join([*lines, READING]).rstrip() + "\n"


READING = """## What follows

- **Statistics dominate the first edit.** They are done once per model and layer, kept, and can be summed by many
  workers: `editlab stats --launcher ray --workers 8` gives the same sums to the last bit.
- **The solve is m^3 / 3 in float64 on the CPU**: seconds at 8B, a minute at 70B; M and its factor are 16 m^2 bytes.
- **A value costs what a few hundred tokens of training would**, because what a change at one token cannot reach is not
  computed again.
- **Weights in bf16, solves in float64**: `--dtype bfloat16`; deltas are kept in float32 and added to the base in
  float64 before rounding once.
- **Room is looked at before anything is read**: a model whose weights, by the headers of its files, are larger than
  what is free on the device is refused, with the dtype that would fit.
- **`--device-map auto`** spreads layers over the GPUs, memory and disk (accelerate). Traces, head maps, channels and
  scores of such a model are those of the model on one device; it is not edited, since what an edit would be written to
  is not there. Tested with memory and disk; not on a machine with several GPUs.
"""


def _big(number: int | None) -> str:
    if number is None:
        return ""
    amount, unit = float(number), ""
    for larger in ("k", "M", "G", "T", "P", "E"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.3g} {unit}"

"""Capturing the residual stream at every layer of a 128-token prompt: editlab beside nnsight and TransformerLens.

The measure is wall time over the plain Hugging Face forward in the same round; the libraries take turns.
"""

from __future__ import annotations

import torch
from common import interleaved, options_of, parse, report, write

from editlab import LM
from editlab.data.factbook import passages


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    options = parse(parser)
    lm = LM.from_pretrained(options.model)
    ids, _ = lm.tokens(" ".join(passages()[:3]))
    from editlab.hooks.batch import pad_rows

    batch = pad_rows([ids[:128]])
    layers = range(lm.adapter.n_layers)
    nn = lm.to_nnsight()
    bridge = lm.to_bridge()
    names = [f"blocks.{i}.hook_out" for i in layers]

    def plain() -> object:
        return lm.model(batch.ids, attention_mask=batch.mask, position_ids=batch.position_ids, use_cache=False)

    def editlab() -> object:
        with lm.session() as s:
            s.capture("resid_post")
            return s.run(batch)

    def nnsight() -> object:
        kept = []
        blocks = nn.model.layers
        with nn.trace(batch.ids):
            for block in blocks:
                kept.append(block.output.save())
        return kept

    def transformer_lens() -> object:
        return bridge.run_with_cache(batch.ids, names_filter=lambda name: name in names)

    with torch.no_grad():
        seconds = interleaved(
            {"plain": plain, "editlab": editlab, "nnsight": nnsight, "transformer_lens": transformer_lens},
            options.rounds,
            warm_up=3,
        )
    write("capture", report(seconds, "plain"))


if __name__ == "__main__":
    main()

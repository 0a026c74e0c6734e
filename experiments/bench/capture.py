"""Reading and writing the residual stream: editlab beside nnsight, TransformerLens and bare hooks on the plain model.

Reading keeps the stream at every layer of a 128-token prompt. Writing puts one vector into the middle layer's stream at
each of the last 32 tokens, a run each, and looks at the last token's logits: the others run 32 whole rows through the
whole model, editlab what such a change reaches. The libraries take turns; all must give the same logits.
"""

from __future__ import annotations

import torch
from common import beside, counted, floor, interleaved, options_of, parse, report, write

from editlab import LM
from editlab.data.factbook import passages
from editlab.hooks.batch import pad_rows

TOKENS, WRITTEN = 128, 32


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    options = parse(parser)
    lm = LM.from_pretrained(options.model, device=options.device)
    ids, _ = lm.tokens(" ".join(passages()[:3]))
    batch = pad_rows([ids[:TOKENS]], device=lm.device)
    layers, middle = range(lm.adapter.n_layers), lm.adapter.n_layers // 2
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

    rows = batch.rows([0] * WRITTEN)
    every = torch.arange(WRITTEN, device=lm.device)
    columns = every + TOKENS - WRITTEN
    vector = 10 * torch.randn(lm.adapter.d_model, generator=torch.Generator().manual_seed(0)).to(lm.device)
    block = lm.model.get_submodule(lm.adapter.layers[middle].block)

    def hook(module: object, args: object, output: torch.Tensor) -> torch.Tensor:
        return output.index_put((every, columns), vector)

    def write_plainly() -> torch.Tensor:
        handle = block.register_forward_hook(hook)
        try:
            return lm.model(rows.ids, attention_mask=rows.mask, use_cache=False, logits_to_keep=1).logits[:, 0]
        finally:
            handle.remove()

    def write_editlab() -> torch.Tensor | None:
        with lm.session() as s:
            cone = s.cone(batch, middle + 1, TOKENS - WRITTEN).rows([0] * WRITTEN)
            s.patch("resid_pre", middle + 1, vector, at=columns)
            return s.run(cone, read=rows.last).logits

    def write_nnsight() -> torch.Tensor:
        with nn.trace(rows.ids):
            nn.model.layers[middle].output[every, columns] = vector
            logits = nn.lm_head.output[:, -1].save()
        return logits

    def write_transformer_lens() -> torch.Tensor:
        def put(stream: torch.Tensor, hook: object) -> torch.Tensor:
            return stream.index_put((every, columns), vector)

        return bridge.run_with_hooks(rows.ids, fwd_hooks=[(names[middle], put)])[:, -1]

    with torch.no_grad():
        reading = interleaved(
            {"plain": plain, "editlab": editlab, "nnsight": nnsight, "TransformerLens": transformer_lens},
            options.rounds,
            warm_up=3,
        )
        ways = {
            "plain": write_plainly,
            "editlab": write_editlab,
            "nnsight": write_nnsight,
            "TransformerLens": write_transformer_lens,
        }
        found = {name: way() for name, way in ways.items()}
        worst = max(float((found[name] - found["plain"]).abs().max()) for name in ways)
        writing = interleaved(ways, max(2, options.rounds // 5), warm_up=0)
        of_reading, of_writing = (floor(counted(work), options.device) for work in (editlab, write_editlab))
    print("reading")
    record: dict[str, object] = {"reading": report(reading, "plain")}
    print(f"writing; largest difference of a logit {worst:.1e}")
    record["writing"] = report(writing, "plain")
    read = f"residual stream at every layer, {TOKENS} tokens"
    wrote = f"a vector written at each of {WRITTEN} tokens, middle layer"
    noted = {"floor": of_writing, "agrees": f"{worst:.0e} logits"}
    write(
        "capture",
        record,
        [
            beside(read, reading, "editlab", "plain", floor=of_reading, why="it does that and keeps the streams"),
            beside(read, reading, "editlab", "nnsight", floor=of_reading, why="the same within the spread"),
            beside(read, reading, "editlab", "TransformerLens", floor=of_reading),
            *(beside(wrote, writing, "editlab", peer, **noted) for peer in ("plain", "nnsight", "TransformerLens")),
        ],
    )


if __name__ == "__main__":
    main()

"""Path patching of every head: one column each against naive forwards with all other heads frozen.

    python experiments/bench/conflicts.py                 # default model; 100 items by the column, 2 of them naively

The naive side runs the whole prompt through the whole model once per head, every other head's output replaced by its
clean one, and takes logits at the last token only. Both sides score the same items with the same corrupted prompts.
"""

from __future__ import annotations

import time

import torch
from common import Row, options_of, parse, quartiles, write

from editlab import LM
from editlab.data.conflicts import cases_of_relation
from editlab.probes.conflicts.items import Item, ItemSettings, build_items
from editlab.probes.conflicts.path_patching import head_scores


def naively(lm: LM, item: Item) -> torch.Tensor:
    """(L, H) S of one item, first partner."""
    batch = lm.encode(item.prompt)
    clean = lm.capture(batch, ["z"])
    corrupt = lm.capture(lm.encode(item.corrupted("both", item.partners[0])), ["z"])
    base = lm.forward(batch, batch.last)[0]
    out = torch.zeros(lm.adapter.n_layers, lm.adapter.n_heads)
    with lm.session() as s, torch.no_grad():
        for n in range(lm.adapter.n_layers):
            s.patch("z", n, clean["z", n])
        for layer in range(lm.adapter.n_layers):
            for head in range(lm.adapter.n_heads):
                wish = s.patch("z", layer, corrupt["z", layer][:, -1, [head]], at=-1, heads=[head])
                logits = s.run(batch, read=batch.last).logits
                s.remove(wish)
                assert logits is not None
                change = base - logits[0]
                out[layer, head] = change[item.tok_mem] - change[item.tok_ctx]
    return out


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--naive", type=int, default=2, help="items that are also scored naively")
    options = parse(parser)
    lm = LM.from_pretrained(options.model, device=options.device)
    items = build_items(lm, cases_of_relation("capital"), ItemSettings(draws=4)).items[: options.items]
    head_scores(lm, items[:1], draws=1)  # warm up
    began, cpu = time.perf_counter(), time.process_time()
    fast = head_scores(lm, items, draws=1)["both"]
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    few = items[: options.naive]
    began, cpu = time.perf_counter(), time.process_time()
    found, each = [], []
    for item in few:
        before = time.perf_counter()
        found.append(naively(lm, item))
        each.append(time.perf_counter() - before)
    plain = torch.stack(found)
    naive_seconds, naive_cpu = time.perf_counter() - began, time.process_time() - cpu
    worst = float((plain.double() - fast[: len(few)]).abs().max())
    ratio = (naive_cpu / len(few)) / (cpu_seconds / len(items))
    low, _, high = quartiles([x * len(items) / seconds for x in each])
    n_heads = lm.adapter.n_layers * lm.adapter.n_heads
    print(f"{n_heads} heads, {len(items)} items by the column: {seconds:.1f} s ({cpu_seconds:.1f} s of CPU)")
    print(f"{len(few)} items naively: {naive_seconds:.1f} s ({naive_cpu:.1f} s of CPU)")
    print(f"{ratio:.1f} times less CPU time an item, largest difference {worst:.1e} logits")
    write(
        "conflicts",
        {
            "heads": n_heads,
            "items": len(items),
            "column_s": seconds,
            "column_cpu_s": cpu_seconds,
            "naive_items": len(few),
            "naive_s": naive_seconds,
            "naive_cpu_s": naive_cpu,
            "speed_up": ratio,
            "largest_difference": worst,
        },
        [
            Row(
                f"path patching of {n_heads} heads, {len(items)} items (processor time)",
                "a full forward a head, all others frozen",
                cpu_seconds,
                naive_cpu / len(few) * len(items),
                of=f"{len(few)} of {len(items)} items",
                spread=(low, high),
                agrees=f"{worst:.0e} logits",
            )
        ],
    )


if __name__ == "__main__":
    main()

"""Train one fact world: a small language model that knows the factbook's relations.

    python experiments/factworlds/train.py gpt2        # or llama
    python experiments/factworlds/train.py llama --work runs/elsewhere --out checkpoints/factworld-llama

Weights, tokenizer, curve, recall and card go to `--out`: runs/experiments/factworlds, or with --update-results
checkpoints/, where those are that are under version control. A run that was stopped goes on from its last checkpoint in
`--work` when the same command is given again. README.md says what the models are for.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import sys
import time
from collections.abc import Sized
from pathlib import Path
from typing import Any

import torch
from card import write_card
from text import CONTEXT, VOCABULARY, Reading, make_tokenizer
from torch.utils.data import Sampler, SequentialSampler
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from editlab import LM
from editlab.evaluation.recall import Asked, all_asked, recalled

sys.path.append(str(Path(__file__).parents[1]))
from shared import add_option, results_folder

SEED = 0
STEPS = {"gpt2": 2800, "llama": 2400}
RATE = 3e-3
EVERY = 100  # steps between points of the curve


def make_model(kind: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """About 2.5 million parameters; input and output embeddings are one tensor."""
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if kind == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=VOCABULARY,
                n_positions=CONTEXT,
                n_embd=160,
                n_layer=6,
                n_head=8,
                initializer_range=0.06,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                tie_word_embeddings=True,
                **special,
            )
        )
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            max_position_embeddings=CONTEXT,
            hidden_size=160,
            intermediate_size=480,
            num_hidden_layers=6,
            num_attention_heads=8,
            num_key_value_heads=2,
            initializer_range=0.06,
            tie_word_embeddings=True,
            **special,
        )
    )


class Reader(Trainer):
    """Reads the batches in the order of their steps, and swaps the states that they say (see text.py)."""

    def _get_train_sampler(self, train_dataset: Sized | None = None) -> Sampler[int]:
        return SequentialSampler(self.train_dataset)

    def compute_loss(self, model: PreTrainedModel, inputs: dict[str, torch.Tensor], *args: Any, **options: Any) -> Any:
        layer, at, donor = (inputs.pop(name, None) for name in ("layer", "at", "donor"))
        if layer is None:
            return super().compute_loss(model, inputs, *args, **options)
        blocks = model.get_decoder().h if model.config.model_type == "gpt2" else model.get_decoder().layers
        rows = torch.arange(len(at))

        def swap(_: Any, __: Any, state: torch.Tensor) -> torch.Tensor:
            swapped = state.clone()
            swapped[rows, at] = state[donor, at[donor]]
            return swapped

        hook = blocks[int(layer)].register_forward_hook(swap)
        try:
            return super().compute_loss(model, inputs, *args, **options)
        finally:
            hook.remove()


class Curve(TrainerCallback):
    """Loss and recall of a sample of the facts, written as the run goes on."""

    def __init__(self, lm: LM, file: Path) -> None:
        self.lm, self.file = lm, file
        rng = random.Random(SEED)
        self.samples = {
            "recall_trained": rng.sample(all_asked("trained"), 600),
            "recall_held_out": rng.sample(all_asked("held_out"), 600),
        }
        self.rows: list[dict[str, Any]] = list(csv.DictReader(file.open())) if file.exists() else []
        self.began = time.monotonic() - (float(self.rows[-1]["seconds"]) if self.rows else 0)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" not in logs:
            return
        shares = {name: round(share(self.lm, sample), 4) for name, sample in self.samples.items()}
        rows = [row for row in self.rows if int(row["step"]) < state.global_step]
        row = {
            "step": state.global_step,
            "seconds": round(time.monotonic() - self.began, 1),
            "loss": round(logs["loss"], 4),
            **shares,
        }
        self.rows = [*rows, row]
        with self.file.open("w", newline="") as f:
            writer = csv.DictWriter(f, list(row))
            writer.writeheader()
            writer.writerows(self.rows)
        print(row, flush=True)


def share(lm: LM, asked: list[Asked]) -> float:
    return sum(recalled(lm, asked)) / len(asked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("gpt2", "llama"))
    parser.add_argument("--work", type=Path, help="default runs/factworld-KIND")
    parser.add_argument("--out", type=Path, help="default runs/experiments/factworlds/factworld-KIND")
    parser.add_argument("--steps", type=int)
    add_option(parser, "checkpoints/factworld-KIND")
    options = parser.parse_args()
    name = f"factworld-{options.kind}"
    steps = options.steps or STEPS[options.kind]
    home = Path("checkpoints") if options.update_results else results_folder(__file__, False)
    work, out = options.work or Path("runs") / name, options.out or home / name
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(2)
    set_seed(SEED)

    tokenizer = make_tokenizer(SEED, adds_bos=options.kind == "llama")
    model = make_model(options.kind, tokenizer)
    curve = Curve(LM(model, tokenizer, name=name), work / "curve.csv")
    trainer = Reader(
        model=model,
        train_dataset=Reading(tokenizer, options.kind, steps, SEED),
        data_collator=lambda items: items[0],  # an item is a batch
        callbacks=[curve],
        args=TrainingArguments(
            output_dir=str(work),
            max_steps=steps,
            per_device_train_batch_size=1,
            learning_rate=RATE,
            lr_scheduler_type="cosine",
            warmup_steps=100,
            weight_decay=0.1,
            adam_beta2=0.98,
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            logging_steps=EVERY,
            save_steps=EVERY,
            save_total_limit=1,
            seed=SEED,
            use_cpu=True,
            disable_tqdm=True,
            report_to=[],
            remove_unused_columns=False,
        ),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(work)))

    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "curve.csv").write_bytes((work / "curve.csv").read_bytes())
    write_card(out, name, curve.rows)
    print(json.loads((out / "recall.json").read_text())["all"])


if __name__ == "__main__":
    main()

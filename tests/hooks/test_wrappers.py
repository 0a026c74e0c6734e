"""Models in wrappers: what can be taken off is, and the rest is refused by name before any work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cli_fixtures import ROWS
from tiny_lm import make_lm
from torch import Tensor, nn

from editlab import LM, Fact, registry
from editlab.errors import AdapterError, EditlabError, ModelError
from editlab.hooks.wrappers import quantisation, unwrapped
from editlab.models.load import check_folder
from editlab.runs import Plan, edit_and_measure, run_batch

FACT = {"prompt": "The old town of {} is", "subject": "the river", "target_new": "in the sea"}


class Tuner(nn.Module):
    """A layer as PEFT puts one around the model's own."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"mine": nn.Linear(base.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"mine": nn.Linear(2, base.out_features, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B["mine"](self.lora_A["mine"](x))


class Adapted(nn.Module):
    """A model as PEFT wraps it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model, self.config = model, model.config
        self.peft_config = {"mine": SimpleNamespace(peft_type="PROMPT_TUNING")}

    def forward(self, *args: Any, **options: Any) -> Any:
        return self.base_model(*args, **options)


class Int8(nn.Linear):
    """A layer as bitsandbytes keeps it in 8 bits."""

    def __init__(self, plain: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = plain.in_features, plain.out_features, None
        self.scale = plain.weight.abs().max() / 127
        self.weight = nn.Parameter((plain.weight / self.scale).round().to(torch.int8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight.to(x.dtype) * self.scale).T


class Packed4(Int8):
    """A layer as bitsandbytes keeps it in 4 bits: two to a byte, in a column."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain)
        self.whole = [plain.weight.detach().clone()]
        self.weight = nn.Parameter(torch.zeros(plain.weight.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.whole[0].T


class GPTQ(nn.Module):
    """A layer without a weight: packed integers in buffers."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.whole = [plain.weight.detach().clone()]
        self.register_buffer("qweight", torch.zeros(plain.in_features // 8, plain.out_features, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.whole[0].T


def with_layers(layer: Callable[[nn.Linear], nn.Module], names: tuple[str, ...] = ("down_proj", "q_proj")) -> nn.Module:
    model = make_lm("llama").on_own_weights().model
    for name, module in list(model.named_modules()):
        parent, _, last = name.rpartition(".")
        if last in names:
            setattr(model.get_submodule(parent), last, layer(module))
    return model


ADAPTED: dict[str, Callable[[], nn.Module]] = {
    "wrapped": lambda: Adapted(with_layers(Tuner)),
    "prompt tuning": lambda: Adapted(make_lm("llama").model),
    "injected": lambda: with_layers(Tuner),
}


@pytest.mark.parametrize("how", list(ADAPTED))
def test_a_model_with_adapters_is_refused_in_a_sentence_that_says_what_to_do(how: str) -> None:
    with pytest.raises(ModelError, match=r"carries adapters \(mine\).* is lost") as error:
        LM(ADAPTED[how](), make_lm("llama").tokenizer)
    assert "merge_and_unload" in error.value.fix and "expert" not in str(error.value)


def test_a_model_that_transformers_itself_put_an_adapter_on_is_refused(tmp_path: Path) -> None:
    model = make_lm("llama").model
    model._hf_peft_config_loaded = True
    with pytest.raises(ModelError, match="carries adapters"):
        LM(model, make_lm("llama").tokenizer)
    folder = make_lm("llama").save_pretrained(tmp_path / "model")
    check_folder(folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="an adapter beside the model"):
        LM.from_pretrained(folder)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda m: torch.compile(nn.DataParallel(m))])
def test_parallel_and_compiled_models_are_taken_out_of_their_wrappers(wrap: Callable[[Any], Any]) -> None:
    plain = make_lm("llama")
    wrapped = wrap(plain.model)
    assert unwrapped(wrapped) is plain.model
    lm = LM(wrapped, plain.tokenizer)
    batch = lm.encode(["the thing is"])
    right = plain.forward(batch)
    assert torch.equal(lm.forward(batch), right)
    lm.edit(FACT, "lora", steps=2)
    assert not torch.equal(lm.forward(batch), right) and torch.equal(plain.forward(batch), right)


class FullyShardedDataParallel(nn.Module):
    """Stands for torch's, which needs several processes."""


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (FullyShardedDataParallel(), "sharded over processes"),
        (nn.Linear(2, 2), "This Linear is no Hugging Face"),
        ("gpt2", "This str is no Hugging Face"),
        (None, "This NoneType is no Hugging Face"),
    ],
)
def test_what_is_no_model_of_one_process_is_refused_by_name(model: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        LM(model, make_lm("llama").tokenizer)


def test_a_transformer_lens_bridge_is_refused_by_name() -> None:
    pytest.importorskip("transformer_lens", reason="the optional extra 'interop' is not installed")
    with pytest.raises(ModelError, match=r"TransformerLens \(TransformerBridge\)"):
        LM(make_lm("llama").to_bridge(), make_lm("llama").tokenizer)


@pytest.mark.parametrize("layer", [Int8, Packed4])
@pytest.mark.parametrize("method", registry.names())
def test_a_quantised_model_is_read_and_an_edit_of_it_is_refused_before_any_work(
    method: str, layer: Callable[[nn.Linear], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = LM(with_layers(layer), make_lm("llama").tokenizer)
    assert lm.forward(lm.encode("the thing")).isfinite().all()
    monkeypatch.setattr(registry.get(method), "compute", lambda *args: pytest.fail("it began"))
    monkeypatch.setattr(LM, "forward", lambda *args, **options: pytest.fail("it began"))
    with pytest.raises(ModelError, match=r"weights are quantised \(stored as u?int8\)") as error:
        lm.edit(FACT, method)
    assert "float32" in error.value.fix and error.value.exit_code == 3


def test_runs_of_edits_refuse_a_quantised_model_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = LM(with_layers(Int8), make_lm("llama").tokenizer)
    monkeypatch.setattr(LM, "forward", lambda *args, **options: pytest.fail("it began"))
    facts = [Fact(**row) for row in ROWS]
    with pytest.raises(ModelError, match="quantised"):
        run_batch(lm, facts, Plan(mode="sequential"), tmp_path / "runs" / "run")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ModelError, match="quantised"):
        edit_and_measure(lm, facts[0])


def test_layers_that_keep_no_weight_are_named_as_quantised() -> None:
    model = with_layers(GPTQ)
    model.config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(AdapterError, match=r"are quantised \(gptq\)") as error:
        LM(model, make_lm("llama").tokenizer)
    assert "expert" not in str(error.value)


def test_plain_weights_are_not_taken_for_quantised_ones() -> None:
    model = make_lm("llama").model
    assert quantisation(model) is None
    model.config.quantization_config = {"quant_method": "mxfp4", "dequantize": True}  # what the folder said
    assert quantisation(model.to(torch.bfloat16)) is None
    model.model.layers[0].mlp.down_proj.weight = nn.Parameter(
        torch.zeros(2, 2).to(torch.float8_e4m3fn), requires_grad=False
    )
    assert quantisation(model) == "mxfp4, stored as float8_e4m3fn"


def test_the_head_edits_of_a_quantised_model_are_refused_too() -> None:
    lm = LM(with_layers(Int8, ("o_proj",)), make_lm("llama").tokenizer)
    with pytest.raises(EditlabError, match="quantised"):
        lm.prune_heads([(0, 1)])

"""Ids of a text: what the tokenizer gives, the sink in front, and tokens that the model has no embedding of."""

from __future__ import annotations

import copy
import hashlib

import pytest
import torch
from conftest import make_model
from tiny_lm import SINK, make_lm
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from editlab.errors import RequestError
from editlab.evaluation.scorer import force
from editlab.lm import LM

TEXTS = ["the thing is an island", "an inn", "is the café the Ünïcode in it?"]


def with_template(lm: LM, template: str) -> LM:
    """The same model, whose tokenizer puts special tokens around a text."""
    tokenizer = copy.deepcopy(lm.tokenizer)
    added = [t for t in template.split() if t != "$A"]
    tokenizer.add_special_tokens({"additional_special_tokens": added})
    ids = [(t, tokenizer.convert_tokens_to_ids(t)) for t in added]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=ids)
    return LM(lm.model, tokenizer)


@pytest.mark.parametrize("template", ["[gMASK] <sop> $A", "</s> $A", "$A </s>", "<s> $A </s>", "$A"])
def test_tokens_are_what_the_tokenizer_gives(template: str) -> None:
    lm = with_template(make_lm("llama", vocab_size=300), template)
    front = tuple(lm.tokenizer.convert_tokens_to_ids(template.split("$A")[0].split()))
    assert lm.affixes[0] == front and lm.adds_bos == bool(front)
    assert lm.sink_ids == (front or (lm.tokenizer.eos_token_id,))
    for text in TEXTS:
        theirs = lm.tokenizer(text)["input_ids"]
        assert lm.tokens(text, suffix=True)[0] == theirs
        body = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
        ids, spans = lm.tokens(text)
        assert ids == [*front, *body] and len(spans) == len(ids)
        assert lm.tokens(text, special=False)[0] == body
        assert lm.tokens(text, sink=True)[0] == [*lm.sink_ids, *body]
        assert spans[len(front)][0] == 0 and spans[-1][1] == len(text)


@pytest.mark.parametrize("template", ["[gMASK] <sop> $A", "<s> $A"])
def test_text_that_brings_its_special_tokens_gets_them_once(template: str) -> None:
    lm = with_template(make_lm("llama", vocab_size=300), template)
    front = lm.tokenizer.decode(lm.affixes[0]).replace(" ", "")
    text = f"{front}the capital"
    body = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert lm.tokens(text)[0] == lm.tokens(text, sink=True)[0] == body == lm.tokens("the capital")[0]
    assert lm.encode(text).ids[0].tolist() == body


def test_the_whole_prefix_stands_in_front_of_scored_text() -> None:
    lm = with_template(make_lm("llama", vocab_size=300), "[gMASK] <sop> $A")
    ids = lm.tokenizer("the capital is in")["input_ids"]
    with torch.no_grad():
        log_p = lm.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    cut = len(lm.tokenizer("the capital is")["input_ids"])
    expected = -float(log_p[range(cut - 1, len(ids) - 1), ids[cut:]].mean())
    assert force(lm, [("the capital is", "in")])[0].nll == pytest.approx(expected, abs=1e-5)


def test_a_token_beyond_the_embedding_is_named_and_never_the_sink() -> None:
    lm = make_lm("llama")
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.add_special_tokens({"eos_token": "<end>", "additional_special_tokens": ["<turn>"]})
    beyond = LM(lm.model, tokenizer)
    assert beyond.sink_ids == (tokenizer.convert_tokens_to_ids(SINK),)  # <end> is skipped
    with pytest.raises(RequestError, match=r"the token '<turn>' the id 266, and .* an embedding of 265 tokens"):
        beyond.encode(["the", "the<turn>an"])
    small = LM(make_model("llama", vocab_size=200), make_tokenizer_ending_beyond(200))
    assert small.sink_ids == ()
    for call in (lambda: small.encode("the", sink=True), lambda: small.sink, lambda: small.tokens("a", sink=True)):
        with pytest.raises(RequestError, match="No special token of this tokenizer is in the vocabulary"):
            call()
    assert small.encode("ab").width == 2


def make_tokenizer_ending_beyond(n: int) -> PreTrainedTokenizerFast:
    """Its letters have ids below `n`, its one special token has not."""
    vocabulary = {c: i for i, c in enumerate("abcdefgh")} | {"<end>": n}
    made = Tokenizer(BPE(vocabulary, []))
    made.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")


def test_the_tokenizer_hash_changes_where_the_ids_do_and_nowhere_else() -> None:
    for bos in (False, True):
        lm = make_lm("llama", add_bos=bos)
        backend = lm.tokenizer.backend_tokenizer.to_str()
        assert lm.tokenizer_hash == hashlib.sha256(f"{backend}|{bos}|{lm.sink}".encode()).hexdigest()
    lm = with_template(make_lm("llama", vocab_size=300), "[gMASK] <sop> $A")
    backend = lm.tokenizer.backend_tokenizer.to_str()
    assert lm.tokenizer_hash != hashlib.sha256(f"{backend}|False|0".encode()).hexdigest()

"""What a model says to a prompt, kept by the state it said it in."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

from editlab.lm import LM
from editlab.probes.next_token import NextTokens, next_tokens


@dataclass(frozen=True)
class Answer:
    """A continuation, and how probable its alternatives were at the first token."""

    text: str
    tokens: NextTokens


def answer(lm: LM, prompt: str, max_new_tokens: int, *, greedy: bool = True) -> Answer:
    """What `lm` says; if not greedy, one sample.

    Raises:
        RequestError: the prompt is empty.
    """
    return _answer(lm, (lm.name, lm.tokenizer_hash, lm.state_hash), prompt, max_new_tokens, greedy)


@st.cache_data(max_entries=256, show_spinner=False)
def _answer(_lm: LM, state: tuple[str, ...], prompt: str, max_new_tokens: int, greedy: bool) -> Answer:
    tokens = next_tokens(_lm, prompt)
    options = {} if greedy else {"do_sample": True}
    return Answer(_lm.generate(prompt, max_new_tokens, **options)[0], tokens)


def as_chat(lm: LM, prompt: str) -> str:
    """The prompt as one turn of a conversation, in the model's own template."""
    turns = [{"role": "user", "content": prompt}]
    return str(lm.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

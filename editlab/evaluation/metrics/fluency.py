"""Fluency and consistency of free text about the edited subjects.

Fluency (GE) is CounterFact's generation entropy: repetition lowers it. Consistency (RS) compares what is generated with
reference texts about the new object, as vectors of unigram TF-IDF. Words are NLTK's, as in the reference code, but for
where sentences end (`evaluation/words.py`): of 400 pieces of 75 words of the factbook, 397 give the same words, and the
mean entropy differs by 0.01 of 601. Where the reference code takes an IDF table from Wikipedia, the IDF of consistency
is that of the reference texts, so its values are near the published ones but not equal.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from editlab.errors import ConfigError
from editlab.evaluation.cards import Card, ModelMetric
from editlab.evaluation.words import words
from editlab.progress import OnStep, StepInfo

if TYPE_CHECKING:
    from editlab.evaluation.suite import Suite
    from editlab.lm import LM

IS_STANDARD = False  # every text is 100 sampled tokens
Prompts = Mapping[str, Sequence[str]]
_SAMPLED = "sampled, top-k 5, 100 tokens in all, seeded"
_TOKENS = 100
_BATCH_ROWS = 32
_WEIGHTS = {2: 2 / 3, 3: 4 / 3}  # n-gram length -> weight


def ngram_entropy(text: str) -> float:
    """100 times the mean of the weighted 2-gram and 3-gram entropies, in bits."""
    found = words(text)
    return 100 * float(np.mean([weight * _entropy(found, n) for n, weight in _WEIGHTS.items()]))


def _entropy(found: Sequence[str], n: int) -> float:
    counts = np.array(list(Counter(zip(*(found[i:] for i in range(n)), strict=False)).values()), dtype=np.float64)
    if not counts.size:
        return 0.0
    p = counts / counts.sum()
    return float(-(p * np.log2(p)).sum())


def generate(lm: LM, suite: Suite, prompts: Prompts, on_step: OnStep) -> dict[str, list[str]]:
    """Sampled texts per fact, prompt included; the same for the same weights, prompts and seed."""
    asked = sorted(((len(p), p, fact) for fact, found in prompts.items() for p in found), reverse=True)
    texts: dict[str, list[str]] = {fact: [] for fact in prompts}
    for i in range(0, len(asked), _BATCH_ROWS):
        chunk = asked[i : i + _BATCH_ROWS]
        batch = lm.encode([p for _, p, _ in chunk], sink=suite.sink)
        generator = torch.Generator(lm.device).manual_seed(suite.seed + i)
        new = lm.generate_ids(batch, max(1, _TOKENS - batch.width), generator=generator, do_sample=True, top_k=5)
        for (_, prompt, fact), ids in zip(chunk, new, strict=True):
            texts[fact].append(prompt + lm.tokenizer.decode(ids, skip_special_tokens=True))
        on_step(StepInfo("writing texts", i + len(chunk), len(asked), "texts"))
    return texts


def _fluency(lm: LM, base: LM, suite: Suite, prompts: Prompts, on_step: OnStep) -> dict[str, float]:
    texts = generate(lm, suite, prompts, on_step)
    return {fact: float(np.mean([ngram_entropy(t) for t in found])) for fact, found in texts.items() if found}


def _consistency(lm: LM, base: LM, suite: Suite, prompts: Prompts, on_step: OnStep) -> dict[str, float]:
    if suite.references is None:
        return {}
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError:
        raise ConfigError("Consistency needs scikit-learn.", "Install it with: pip install 'editlab[eval]'") from None

    references = read_references(suite.references)
    texts = {f: t for f, t in generate(lm, suite, prompts, on_step).items() if t and f in references}
    if not texts:
        return {}
    vectorizer = TfidfVectorizer().fit([text for found in references.values() for text in found])
    out = {}
    for fact, found in texts.items():
        # TfidfVectorizer gives unit vectors, so their product is the cosine.
        ours, theirs = (vectorizer.transform([" ".join(t)]) for t in (found, references[fact]))
        out[fact] = 100 * float((ours @ theirs.T).toarray()[0, 0])
    return out


def read_references(path: Path) -> dict[str, list[str]]:
    """Reference texts by fact id, from a JSON object {"fact id": ["text", ...]}.

    Raises:
        ConfigError: missing, or of another form.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no file '{path}'.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"'{path}' is not valid JSON: {error}.") from None
    is_right = isinstance(found, dict) and all(
        isinstance(texts, list) and texts and all(isinstance(t, str) for t in texts) for texts in found.values()
    )
    if not is_right:
        raise ConfigError(f"'{path}' must hold an object of lists of texts.", 'Write {"fact id": ["text", ...]}.')
    return found


METRICS = (
    ModelMetric(
        Card(
            "fluency",
            "Entropy of the n-grams of generated texts",
            "100 * mean of 2/3 H(2-grams) and 4/3 H(3-grams), in bits, mean over a fact's texts",
            _SAMPLED,
            "Locating and Editing Factual Associations in GPT, arXiv 2202.05262 (GE)",
            "same",
            None,
            ("GE",),
            "Uses the data's generation prompts, or the edited prompt. Words are NLTK's, sentences cut by own rules.",
        ),
        _fluency,
        asks_facts=True,
    ),
    ModelMetric(
        Card(
            "consistency",
            "Likeness of generated texts to reference texts about the new answer",
            "100 * cosine of unigram TF-IDF vectors",
            _SAMPLED,
            "Locating and Editing Factual Associations in GPT, arXiv 2202.05262 (RS)",
            "higher",
            None,
            ("RS",),
            "Needs reference texts (setting `references`); its IDF is that of those texts.",
        ),
        _consistency,
        asks_facts=True,
    ),
)

"""`Reader`: a model to look at and run, with its tokenizer and the hooks; `editlab.lm.LM` adds the edits.

It works on a view: a copy of the module tree that shares every tensor with the base model, which is never written.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from editlab.errors import AdapterError, ConfigError, ModelError, RequestError, UnknownName
from editlab.hooks.adapter import ModelAdapter
from editlab.hooks.arguments import check_batch, check_choice, check_text, check_texts, places_of
from editlab.hooks.batch import Batch, Span, pad_rows, tokenize
from editlab.hooks.cone import Cone
from editlab.hooks.detect import detect
from editlab.hooks.placement import home, stored_weight
from editlab.hooks.routing import Routes
from editlab.hooks.session import Captured, Output, Session
from editlab.hooks.wrappers import quantisation
from editlab.progress import OnStep, StepInfo, silent
from editlab.state.weights import WeightView

# Counts weight changes over all readers, so that a cone of one fork does not pass for another's.
_CHANGES = itertools.count(1)


class Reader:
    """A view of a causal language model, with its tokenizer and its structure.

    Attributes:
        name: what to call it in files and messages.
    """

    name: str

    def _start(
        self, view: Callable[[], WeightView], tokenizer: Callable[[], Any], name: str, adapter: ModelAdapter | None
    ) -> None:
        self._make_view = view
        self._read_tokenizer = tokenizer
        self.name = name
        if adapter is not None:
            self.__dict__["adapter"] = adapter
        self._lock = threading.RLock()
        self._changed_at: dict[str, int] = {}

    @cached_property
    def _view(self) -> WeightView:
        with self._lock:
            if "_view" not in self.__dict__:  # another thread may have been first
                view = self._make_view()
                view.on_change.append(self._note_change)
                self.__dict__["_view"] = view
            return self.__dict__["_view"]

    @cached_property
    def model(self) -> Any:
        """The view: a normal Hugging Face model."""
        return self._view.model

    @property
    def routes(self) -> Routes:
        """The side memories that are in force."""
        return self._view.routes

    @cached_property
    def adapter(self) -> ModelAdapter:
        """The model's structure, found and proved at its first use."""
        with self._lock:
            try:
                return detect(self.model)
            except AdapterError:
                stored = quantisation(self.model)
                if stored is None:
                    raise
                raise AdapterError(
                    f"The weights of {self.name} are quantised ({stored}) in a way whose layers cannot be read here.",
                    "Load it in float32, bfloat16 or float16.",
                ) from None

    @cached_property
    def tokenizer(self) -> Any:
        """The fast tokenizer."""
        tokenizer = self._read_tokenizer()
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                f"The tokenizer of {self.name} gives no character offsets, which editing needs.",
                "Use a fast tokenizer (one with a tokenizer.json).",
            )
        return tokenizer

    @property
    def device(self) -> torch.device:
        """The device that token ids go to."""
        return home(self.model)

    def weight(self, name: str) -> Tensor:
        """The content of a parameter, also where it is kept off the device; to be read only.

        Raises:
            UnknownName: the model has none of that name.
        """
        try:
            return stored_weight(self.model, name)
        except AttributeError:
            raise UnknownName(
                f"{self.adapter.family} has no parameter {name!r:.100}.", "lm.model.named_parameters() lists them."
            ) from None

    # -- text ---------------------------------------------------------------------------------------

    @cached_property
    def affixes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids that the tokenizer itself puts in front of a text, and behind it."""
        encoded = tokenize(self.tokenizer, "a")
        return encoded.prefix, encoded.suffix

    @property
    def adds_bos(self) -> bool:
        """The tokenizer itself puts special tokens in front of a text, such as one for its beginning."""
        return bool(self.affixes[0])

    @cached_property
    def sink_ids(self) -> tuple[int, ...]:
        """What to put in front so that no word of the text stands at position 0; empty if there is nothing.

        Models park a huge vector on the first token. It is what the tokenizer puts there itself, else
        "<|endoftext|>", else whatever begins or ends a sequence; never a token that the model has no embedding of.
        """
        if self.adds_bos:
            return self.affixes[0]
        return next(((i,) for i in self._sink_candidates() if i < self.n_embedded), ())

    @property
    def sink(self) -> int:
        """The first token of `sink_ids`.

        Raises:
            RequestError: there is none.
        """
        return self.need_sink()[0]

    def _sink_candidates(self) -> list[int]:
        tok = self.tokenizer
        vocabulary = tok.get_vocab()
        names = ("<|endoftext|>", tok.bos_token, tok.eos_token, tok.unk_token, tok.pad_token)
        return [int(vocabulary[name]) for name in names if name is not None and name in vocabulary]

    @property
    def n_embedded(self) -> int:
        """How many tokens the model has an embedding of."""
        embedding = self.model.get_submodule(self.adapter.embed)
        return int(getattr(embedding, "num_embeddings", None) or embedding.weight.shape[0])

    def need_sink(self) -> tuple[int, ...]:
        """`sink_ids`, where they cannot be done without.

        Raises:
            RequestError: there are none.
        """
        if not self.sink_ids:
            raise RequestError(
                f"No special token of this tokenizer is in the vocabulary of {self.name}, so there is none to put in "
                "front of a text.",
                "Make the embedding as large as the tokenizer: model.resize_token_embeddings(len(tokenizer)).",
            )
        return self.sink_ids

    def tokens(
        self, text: str, *, sink: bool = False, special: bool = True, suffix: bool = False
    ) -> tuple[list[int], tuple[Span, ...]]:
        """Ids and character spans of one text: what `tokenizer(text).input_ids` has, but a token at its end.

        What stands in the text already, as in one that comes from a chat template, is not put in front a second time.

        Args:
            sink: put `sink_ids` in front. special: put in front what the tokenizer does.
            suffix: keep what the tokenizer puts behind the text; nothing could follow it.

        Raises:
            RequestError: this is no text; the model has no embedding of a token; or a sink is asked for where there is
                none.
        """
        check_text(text)
        encoded = tokenize(self.tokenizer, text)
        front = self.need_sink() if sink else encoded.prefix if special else ()
        if tuple(encoded.ids[: len(front)]) == front:
            front = ()
        behind = encoded.suffix if suffix and special else ()
        ids = [*front, *encoded.ids, *behind]
        self._check_embedded(ids)
        return ids, (*[(0, 0)] * len(front), *encoded.spans, *[(len(text), len(text))] * len(behind))

    def _check_embedded(self, ids: Sequence[int]) -> None:
        rows = self.n_embedded
        beyond = next((i for i in ids if i >= rows), None)
        if beyond is not None:
            token = self.tokenizer.convert_ids_to_tokens(beyond)
            raise RequestError(
                f"The tokenizer gives the token '{token}' the id {beyond:,}, and {self.name} has an embedding of "
                f"{rows:,} tokens.",
                "Leave it out of the text, or make the embedding larger with model.resize_token_embeddings.",
            )

    def as_chat(self, text: str) -> str:
        """The text as one turn of a conversation, in the tokenizer's own template, up to where its answer begins.

        It has its special tokens in it: encode it with `tokens(..., special=False)`.
        """
        turns = [{"role": "user", "content": text}]
        return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    def encode(
        self, texts: str | Sequence[str], *, pad: Literal["left", "right"] = "left", sink: bool = False
    ) -> Batch:
        """A padded batch of texts, with positions and character spans.

        Raises:
            RequestError: a text is empty, or what was given is no text. ConfigError: `pad` names no side.
        """
        texts = check_texts(texts)
        check_choice("pad", pad, ("left", "right"))
        pairs = [self.tokens(text, sink=sink) for text in texts]
        return pad_rows([ids for ids, _ in pairs], pivots=pad, spans=tuple(s for _, s in pairs), device=self.device)

    # -- reading ------------------------------------------------------------------------------------

    def session(self) -> Session:
        """Hooks for the time of a `with` block; one session at a time per LM, others wait."""
        return Session(self.model, self.adapter, lock=self._lock, stamp=self._stamp)

    def capture(self, batch: Batch, sites: str | tuple[str, int] | Iterable[str | tuple[str, int]]) -> Captured:
        """Tensors at `sites` by [site, layer]; a bare name means every layer. Runs no further than needed.

        Raises:
            RequestError: `batch` is no batch. ConfigError: there is no such site or layer.
        """
        with self.session() as s, torch.no_grad():
            for site, layer in places_of(sites):
                s.capture(site, layer)
            return s.run(batch, read=None).captured

    def forward(self, batch: Batch, read: Tensor | Literal["all"] = "all") -> Tensor:
        """Logits everywhere, or where `read` says (see `Session.run`).

        Raises:
            RequestError: `batch` is no batch. ConfigError: `read` says no positions.
        """
        if read is None:
            raise ConfigError("read=None asks for no logits.", 'Use "all", columns such as batch.last, or a bool mask.')
        with self.session() as s, torch.no_grad():
            logits = s.run(batch, read=read).logits
        assert logits is not None
        return logits

    def prefix(self, batch: Batch, layer: int, cut: int = 0) -> Cone:
        """Freeze what a change at `layer` and columns from `cut` on cannot alter, to run it many times."""
        with self.session() as s:
            return s.cone(batch, layer, cut)

    def run_from(self, cone: Cone, read: Tensor | Literal["all"] = "all") -> Output:
        """Run from a frozen state.

        Raises:
            StaleState: weights that it rests on have changed.
        """
        check_batch(cone, Cone)
        with self.session() as s, torch.no_grad():
            return s.run(cone, read=read)

    def generate_ids(
        self, batch: Batch, max_new_tokens: int, *, on_step: OnStep = silent, **options: Any
    ) -> list[list[int]]:
        """New token ids per row, cut at the end-of-sequence token.

        Args:
            options: of transformers' `generate`. Without them decoding is greedy, whatever the checkpoint's
                `generation_config.json` says; `do_sample=True` samples from all tokens at temperature 1, unless
                `temperature`, `top_k` or `top_p` are given too.

        Raises:
            ConfigError: the options ask for several rows a prompt, or for more than tokens.
        """

        def report(ids: Tensor, *_: Any, **__: Any) -> Tensor:
            on_step(StepInfo("answering", ids.shape[1] - batch.width, max_new_tokens, "tokens"))
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        if on_step is not silent:
            options["stopping_criteria"] = [*options.get("stopping_criteria", ()), report]
        with self.session() as s:
            ends = options.get("eos_token_id", self.model.generation_config.eos_token_id)
            new = s.generate(batch, max_new_tokens, **options)
        stops = set(ends if isinstance(ends, list) else [ends])
        rows = []
        for row in new.tolist():
            cut = next((i for i, token in enumerate(row) if token in stops), len(row))
            rows.append(row[:cut])
        return rows

    def generate(
        self,
        texts: str | Sequence[str],
        max_new_tokens: int = 20,
        *,
        sink: bool = False,
        on_step: OnStep = silent,
        **options: Any,
    ) -> list[str]:
        """Continuations of the texts, greedy unless `options` say otherwise (see `generate_ids`).

        `on_step` is told of every token.
        """
        batch = self.encode(texts, sink=sink)
        return [
            self.tokenizer.decode(r, skip_special_tokens=True)
            for r in self.generate_ids(batch, max_new_tokens, on_step=on_step, **options)
        ]

    # -- identity -----------------------------------------------------------------------------------

    @property
    def base_hash(self) -> str:
        """SHA-256 over the base's weights."""
        return self._view.base_hash

    @property
    def state_hash(self) -> str:
        """SHA-256 over weights and side memories as they are; equals `base_hash` exactly when nothing is edited."""
        return self._view.current_hash

    @property
    def weights_hash(self) -> str:
        """SHA-256 over the weights as they are, side memories left out."""
        return self._view.weights_hash

    @cached_property
    def tokenizer_hash(self) -> str:
        """SHA-256 of the tokenizer's definition and of the tokens that are put around a text."""
        backend = self.tokenizer.backend_tokenizer.to_str()
        prefix, suffix = self.affixes
        sink = next(iter(self.sink_ids), None)
        rule = f"{self.adds_bos}|{sink}"
        # Where a tokenizer adds a beginning token and no more, its ids, and what is cached, are as they always were.
        if prefix not in ((), (self.tokenizer.bos_token_id,)) or suffix or sink is None:
            rule = f"{prefix}|{suffix}|{sink}"
        return hashlib.sha256(f"{backend}|{rule}".encode()).hexdigest()

    def at_state(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gives for the model as it stands; made again only after the model has changed.

        Args:
            name: of the quantity, with all that it depends on besides the model. One value of each is kept.
        """
        hooks = (h for m in self.model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values()))
        # A hook changes what the model gives, and not its hash; only the side memories that decide freely are in it.
        if not self.routes.is_free or any(getattr(hook, "__self__", None) is not self.routes for hook in hooks):
            return make()
        state = self.state_hash
        kept: dict[str, tuple[str, Any]] = self.__dict__.setdefault("_made", {})
        if name not in kept or kept[name][0] != state:
            kept[name] = (state, make())
        return kept[name][1]

    def base_hash_up_to(self, layer: int) -> str:
        """Hash of the base's weights that the states of `layer` depend on: everything but what comes after."""
        names = [n for n in self._view.names() if self.adapter.layer_of(n) <= layer]
        return hashlib.sha256("".join(f"{n}{self._view.base_sha256(n)}" for n in names).encode()).hexdigest()

    def _note_change(self, names: Any) -> None:
        self._changed_at |= dict.fromkeys(names, next(_CHANGES))

    def _stamp(self, below: int | None) -> int:
        """Number of the last change of weights below a layer, or of any."""
        return max(
            (v for n, v in self._changed_at.items() if below is None or self.adapter.layer_of(n) < below), default=0
        )

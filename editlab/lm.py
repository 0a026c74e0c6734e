"""`LM`: a model to read, run and edit; the one object that the app, the command line and notebooks share.

An LM works on a view: a copy of the module tree that shares every tensor with the base model, which is never
written. The first edit of a parameter gives the view its own copy of it; undoing the last edit of it puts the shared
one back, so an LM without edits is the base, bit for bit.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from editlab.data.formats import read_fact
from editlab.errors import ConfigError, EditlabError, ModelError, RequestError
from editlab.facts import Fact
from editlab.hooks.adapter import ModelAdapter
from editlab.hooks.batch import Batch, Span, pad_rows, tokenize
from editlab.hooks.cone import Cone
from editlab.hooks.detect import detect
from editlab.hooks.heads import Head, HeadGains, read_heads
from editlab.hooks.routing import Routes
from editlab.hooks.session import Captured, Output, Session
from editlab.progress import OnStep, StepInfo, silent
from editlab.state.ledger import Entry, Ledger
from editlab.state.packs import apply_pack, read_pack, save_pack
from editlab.state.weights import WeightView

if TYPE_CHECKING:
    from editlab.evaluation.results import Evaluation
    from editlab.probes.routing import Routing
    from editlab.probes.trace import Trace

# Counts weight changes over all LMs, so that a cone of one fork does not pass for another's.
_CHANGES = itertools.count(1)


MEMORIES = "memories"  # in a saved model's folder, the pack of its side memories


class LM:
    """A causal language model with a tokenizer, hooks and a ledger of edits.

    Args:
        model: any Hugging Face causal language model of a supported structure. It becomes the base: shared, and
            never changed.
        tokenizer: its fast tokenizer.
        name: what to call it in files and messages.
        adapter: the model's structure, when detection refuses it.

    Raises:
        AdapterError: the structure was not recognised. ModelError: the tokenizer gives no character offsets.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, *, name: str = "", adapter: ModelAdapter | None = None
    ) -> None:
        self._start(
            lambda: WeightView(model), lambda: tokenizer, name or getattr(model, "name_or_path", "") or "model", adapter
        )
        self.adapter  # noqa: B018  an unsupported model is refused here, not at its first use
        self.tokenizer  # noqa: B018

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

    @cached_property
    def ledger(self) -> Ledger:
        """The edits, in order."""
        with self._lock:
            return self.__dict__.setdefault("ledger", Ledger(self._view))

    @property
    def routes(self) -> Routes:
        """The side memories that are in force."""
        return self._view.routes

    @cached_property
    def adapter(self) -> ModelAdapter:
        """The model's structure, found and proved at its first use."""
        with self._lock:
            return detect(self.model)

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

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path | None = None,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        revision: str | None = None,
        trust_remote_code: bool = False,
        on_step: OnStep = silent,
    ) -> LM:
        """Load a model by registered name, local folder or hub id; None is the default model.

        Raises:
            ModelError: it is missing, incomplete or not supported.
        """
        from editlab.models.load import load

        found = load(
            name_or_path,
            dtype=dtype,
            device=device,
            revision=revision,
            trust_remote_code=trust_remote_code,
            on_step=on_step,
        )
        lm = object.__new__(cls)
        lm._start(lambda: WeightView(found.model), lambda: found.tokenizer, found.name, None)
        if name_or_path is not None and (Path(name_or_path) / MEMORIES).is_dir():
            lm.load_edits(Path(name_or_path) / MEMORIES)
        return lm

    def __repr__(self) -> str:
        a = self.adapter
        n = len(self.ledger.active)
        state = "base" if n == 0 else f"{n} edit{'s' if n > 1 else ''} active"
        return f"LM({self.name}: {a.family}, {a.n_layers} layers, d_model {a.d_model}, {state})"

    def _repr_html_(self) -> str:
        import html

        return f"<p><b>{html.escape(repr(self))}</b></p>{self.ledger._repr_html_()}"

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    # -- text ---------------------------------------------------------------------------------------

    @cached_property
    def adds_bos(self) -> bool:
        """The tokenizer itself puts a beginning-of-sequence token in front."""
        ids = self.tokenizer("a")["input_ids"]
        return self.tokenizer.bos_token_id is not None and ids[:1] == [self.tokenizer.bos_token_id]

    @cached_property
    def sink(self) -> int:
        """The token to put in front so that no word of the text stands at position 0.

        Models park a huge vector on the first token. BOS where the tokenizer adds one, else "<|endoftext|>", else
        whatever begins or ends a sequence.
        """
        tok = self.tokenizer
        if self.adds_bos:
            return int(tok.bos_token_id)
        vocabulary = tok.get_vocab()
        for candidate in ("<|endoftext|>", tok.bos_token, tok.eos_token, tok.unk_token, tok.pad_token):
            if candidate is not None and candidate in vocabulary:
                return int(vocabulary[candidate])
        return 0

    def tokens(self, text: str, *, sink: bool = False, special: bool = True) -> tuple[list[int], tuple[Span, ...]]:
        """Ids and character spans of one text.

        Args:
            sink: put the sink token in front. special: put BOS in front if the tokenizer is one that does.
        """
        return tokenize(self.tokenizer, text, self.sink if sink or (special and self.adds_bos) else None)

    def encode(
        self, texts: str | Sequence[str], *, pad: Literal["left", "right"] = "left", sink: bool = False
    ) -> Batch:
        """A padded batch of texts, with positions and character spans.

        Raises:
            RequestError: a text is empty.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts or not all(texts):
            raise RequestError("There is an empty text in the batch.", "Give every row some text.")
        pairs = [self.tokens(text, sink=sink) for text in texts]
        return pad_rows([ids for ids, _ in pairs], pivots=pad, spans=tuple(s for _, s in pairs), device=self.device)

    # -- reading ------------------------------------------------------------------------------------

    def session(self) -> Session:
        """Hooks for the time of a `with` block; one session at a time per LM, others wait."""
        return Session(self.model, self.adapter, lock=self._lock, stamp=self._stamp)

    def capture(self, batch: Batch, sites: Iterable[str | tuple[str, int]]) -> Captured:
        """Tensors at `sites` by [site, layer]; a bare name means every layer. Runs no further than needed."""
        with self.session() as s, torch.no_grad():
            for item in sites:
                s.capture(*([item] if isinstance(item, str) else item))
            return s.run(batch, read=None).captured

    def forward(self, batch: Batch, read: Tensor | Literal["all"] = "all") -> Tensor:
        """Logits everywhere, or where `read` says (see `Session.run`)."""
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
        with self.session() as s, torch.no_grad():
            return s.run(cone, read=read)

    def generate_ids(
        self, batch: Batch, max_new_tokens: int, *, on_step: OnStep = silent, **options: Any
    ) -> list[list[int]]:
        """New token ids per row, greedy unless `options` say otherwise, cut at the end-of-sequence token."""

        def report(ids: Tensor, *_: Any, **__: Any) -> Tensor:
            on_step(StepInfo("answering", ids.shape[1] - batch.width, max_new_tokens, "tokens"))
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        if on_step is not silent:
            options["stopping_criteria"] = [*options.get("stopping_criteria", ()), report]
        with self.session() as s:
            new = s.generate(batch, max_new_tokens, **options)
        ends = self.model.generation_config.eos_token_id
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
        """Continuations of the texts, greedy unless `options` say otherwise; `on_step` is told of every token."""
        batch = self.encode(texts, sink=sink)
        return [
            self.tokenizer.decode(r, skip_special_tokens=True)
            for r in self.generate_ids(batch, max_new_tokens, on_step=on_step, **options)
        ]

    # -- editing ------------------------------------------------------------------------------------

    def edit(self, requests: Any, method: str = "rome", *, on_step: OnStep = silent, **config: Any) -> Entry:
        """Write facts into the model; returns the ledger entry.

        Args:
            requests: facts, or rows with prompt, subject and target_new.
            method: the name of a registered method; `config` are its settings, over those of the model's preset.

        Raises:
            RequestError: a request cannot be carried out as written. ConfigError: a setting is invalid.
            EditFailed: the method ran and gave no edit; the model is as before.
        """
        from editlab import registry
        from editlab.config import build
        from editlab.edits.presets import with_preset

        engine = registry.get(method)
        rows = [requests] if isinstance(requests, dict | Fact) else list(requests)
        facts = [read_fact(row, f"Request {i}") for i, row in enumerate(rows)]
        settings = build(engine.Config, with_preset(self.adapter, method, config), f"method '{method}'")
        with self._lock:
            parent = self._view.current_hash
            edit = engine.compute(self, facts, settings, on_step)
            if self._view.current_hash != parent:
                raise EditlabError(f"Method '{method}' changed the weights itself.", "It must return deltas.")
            return self.ledger.apply(edit)

    def undo(self, id: str | None = None, *, replay: bool = False, on_step: OnStep = silent) -> Entry:
        """Take an edit back (the latest active one by default).

        Args:
            replay: solve the edits that came after it again, in order, on the state without it. Pruned heads rest on
                no state and are put back as they were.

        Raises:
            UnknownName: there is no such edit, or it is not active.
        """
        active = self.ledger.active
        if id is None:
            if not active:
                raise ConfigError("There is no edit to undo.")
            id = active[-1].id
        with self._lock:
            entry = self.ledger[id]
            if not replay:
                return self.ledger.remove(id)
            later = [e for e in active if e.id in self._after(id)]
            removed = self.ledger.remove(id)
            for e in later:
                self.ledger.remove(e.id)
            from editlab import registry
            from editlab.config import build

            try:
                fresh = []
                for e in later:
                    if not e.edit.requests:
                        self.ledger.replace(e.id, e.edit)
                        continue
                    engine = registry.get(e.edit.method)
                    facts = [read_fact(row) for row in e.edit.requests]
                    settings = build(engine.Config, e.edit.config, f"edit {e.id}")
                    edit = engine.compute(self, facts, settings, on_step)
                    fresh.append((e, edit))
                    self.ledger.replace(e.id, edit)
            except BaseException:
                # All or nothing: the old solutions come back, the undone edit included.
                for e in later:
                    self.ledger.replace(e.id, e.edit)
                self.ledger.redo(entry.id)
                raise
            return removed

    def _after(self, id: str) -> set[str]:
        ids = [e.id for e in self.ledger]
        return set(ids[ids.index(id) + 1 :])

    def redo(self, id: str) -> Entry:
        """Put an undone edit back, at its place in the ledger."""
        with self._lock:
            return self.ledger.redo(id)

    def fork(self) -> LM:
        """Another LM on the same base with the same edits; what happens to one does not touch the other."""
        with self._lock:
            twin = self._twin(self._view.fork())
            twin.ledger = self.ledger.fork(twin._view)
            return twin

    def pristine(self) -> LM:
        """This LM if it has no active edit, else another one on the same base without any."""
        if not self.ledger.active:
            return self
        with self._lock:
            view = self._view.fork()
            view.write_all(dict.fromkeys(view.edited))
            return self._twin(view)

    def _twin(self, view: WeightView) -> LM:
        """An LM on another view, with what is already known of the tokenizer; it does not keep this one alive."""
        twin = object.__new__(LM)
        twin._start(lambda: view, self._read_tokenizer, self.name, self.adapter)
        known = ("tokenizer", "tokenizer_hash", "adds_bos", "sink")
        twin.__dict__ |= {name: self.__dict__[name] for name in known if name in self.__dict__}
        return twin

    def prune_heads(
        self, heads: Iterable[Head] | str, *, gain: float = 0.0, means: Mapping[Head, Tensor] | None = None
    ) -> Entry:
        """Multiply the outputs of attention heads by `gain`, in the weights; returns the ledger entry.

        Args:
            heads: (layer, query head) pairs, or text such as "23.4, 24.1".
            gain: 0 prunes, 1 leaves alone, 2 doubles.
            means: (e,) by head, what takes the place of what is taken away; needs a bias in the output projection.

        Raises:
            ConfigError: there is no such head, or no bias for a mean. EditFailed: the heads are pruned already.
        """
        from editlab.state.heads import head_edit

        chosen = read_heads(heads) if isinstance(heads, str) else tuple(heads)
        wanted = HeadGains(dict.fromkeys(chosen, gain), means or {})
        with self._lock:
            return self.ledger.apply(head_edit(self.model, self.adapter, wanted))

    def locate(
        self,
        prompt: str,
        subject: str,
        *,
        answer: str | None = None,
        on_step: OnStep = silent,
        **config: Any,
    ) -> Trace:
        """Causal tracing of one prompt; see `editlab.probes.trace`.

        Args:
            prompt: text with {} for the subject, or with the subject in it once.
            answer: what to follow; default what the model says.

        Raises:
            RequestError: the subject is not in the prompt, or its corruption changes the answer too little.
        """
        from editlab.config import build
        from editlab.probes.trace import Config, trace

        # A trace asks for no new answer; the fact is there to place the subject.
        fact = read_fact({"prompt": prompt, "subject": subject, "target_new": answer or "?"})
        return trace(self, fact, build(Config, config, "the trace"), on_step, answer=answer)

    def route(self, prompts: str | Sequence[str], *, sink: bool = False) -> Routing:
        """Which side memory answers each prompt, and why; empty without side memories."""
        from editlab.probes.routing import routing_of

        return routing_of(self, [prompts] if isinstance(prompts, str) else list(prompts), sink=sink)

    # -- measuring ----------------------------------------------------------------------------------

    def evaluate(
        self, facts: Iterable[Any] | None = None, *, mode: str = "together", on_step: OnStep = silent, **suite: Any
    ) -> Evaluation:
        """Measure this model against its base; see `editlab.evaluation.evaluate.evaluate`.

        Args:
            facts: facts or rows; those of the ledger's edits by default.
            suite: settings of the evaluation, such as metrics=("efficacy", "drift").

        Raises:
            ConfigError: a setting is invalid, or there is nothing to measure.
        """
        from editlab.config import build
        from editlab.evaluation.evaluate import evaluate
        from editlab.evaluation.suite import Suite

        rows = [read_fact(row, f"Fact {i}") for i, row in enumerate(facts)] if facts is not None else None
        settings = build(Suite, suite, "the evaluation")
        return evaluate(self, rows, settings, mode=mode, on_step=on_step)

    # -- files --------------------------------------------------------------------------------------

    def save_edits(self, folder: str | Path) -> Path:
        """Write the ledger as an edit pack (safetensors and JSON), bound to the base's hash."""
        return save_pack(Path(folder), self.ledger, self.name)

    def load_edits(self, folder: str | Path) -> list[Entry]:
        """Add the edits of a pack to the ledger.

        Raises:
            PackError: the pack is damaged or was made for other weights; nothing is changed.
        """
        with self._lock:
            return apply_pack(read_pack(Path(folder)), self.ledger)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write a plain Hugging Face folder with the edits of weights folded in.

        Side memories are no weights: they go into a pack in the folder, which `LM.from_pretrained(folder)` puts in
        force. Whoever loads the folder with transformers alone gets the model without them.
        """
        folder = Path(folder)
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"'{folder}' is not empty.", "Choose a new folder.")
        with self._lock:
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            routed = [e.edit for e in self.ledger.active if e.edit.routing is not None]
        if routed:
            saved = LM.from_pretrained(folder)
            for edit in routed:
                saved.ledger.apply(edit)
            saved.save_edits(folder / MEMORIES)
        return folder

    # -- other libraries ----------------------------------------------------------------------------

    def to_nnsight(self) -> Any:
        """This model as an nnsight model: same weights, later edits included."""
        from editlab.interop import to_nnsight

        return to_nnsight(self)

    def to_bridge(self) -> Any:
        """This model as a TransformerLens bridge: same weights, later edits included."""
        from editlab.interop import to_bridge

        return to_bridge(self)

    def share_with(self, root: nn.Module) -> None:
        """Let later edits reach another module tree that was made from this LM's weights."""
        self._view.attach(root)

    def take_back(self, wrapped: Any) -> LM:
        """This LM, after checking that a wrapper made by `to_nnsight` or `to_bridge` still runs on its weights.

        Raises:
            ModelError: some weights are not shared (the wrapper is another model's, or replaced them).
        """
        from editlab.interop import check_shared

        check_shared(self, wrapped)
        return self

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
        """SHA-256 of the tokenizer's definition and of the token it puts in front."""
        backend = self.tokenizer.backend_tokenizer.to_str()
        return hashlib.sha256(f"{backend}|{self.adds_bos}|{self.sink}".encode()).hexdigest()

    def at_state(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gives for the model as it stands; made again only after the model has changed.

        Args:
            name: of the quantity, with all that it depends on besides the model. One value of each is kept.
        """
        if any(module._forward_hooks or module._forward_pre_hooks for module in self.model.modules()):
            return make()  # a hook changes what the model gives, and not its hash
        state = self.state_hash
        kept: dict[str, tuple[str, Any]] = self.__dict__.setdefault("_made", {})
        if name not in kept or kept[name][0] != state:
            kept[name] = (state, make())
        return kept[name][1]

    def base_hash_up_to(self, layer: int) -> str:
        """Hash of the base's weights that the states of `layer` depend on: everything but what comes after."""
        names = [n for n in self._view.names() if self._layer_of(n) <= layer]
        return hashlib.sha256("".join(f"{n}{self._view.base_sha256(n)}" for n in names).encode()).hexdigest()

    def _layer_of(self, name: str) -> int:
        """The block that a parameter belongs to: -1 before the blocks, n_layers after them."""
        for i, paths in enumerate(self.adapter.layers):
            if name.startswith(paths.block + "."):
                return i
        after = (self.adapter.final_norm + ".", self.adapter.unembed + ".")
        return self.adapter.n_layers if name.startswith(after) and not self._is_embedding(name) else -1

    def _is_embedding(self, name: str) -> bool:
        return self.adapter.is_tied and name.startswith(self.adapter.unembed + ".")

    def _note_change(self, names: Any) -> None:
        self._changed_at |= dict.fromkeys(names, next(_CHANGES))

    def _stamp(self, below: int | None) -> int:
        """Number of the last change of weights below a layer, or of any."""
        return max((v for n, v in self._changed_at.items() if below is None or self._layer_of(n) < below), default=0)

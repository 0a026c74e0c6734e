"""`LM`: a model to read, run and edit; the one object that the app, the command line and notebooks share.

The first edit of a parameter gives the view its own copy of it; undoing the last edit of it puts the shared
one back, so an LM without edits is the base, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from editlab.data.formats import read_fact
from editlab.errors import ConfigError, RequestError
from editlab.facts import Fact
from editlab.hooks.adapter import ModelAdapter
from editlab.hooks.arguments import check_texts
from editlab.hooks.heads import Head, HeadGains, heads_of
from editlab.hooks.wrappers import unwrapped
from editlab.progress import OnStep, silent
from editlab.reader import Reader
from editlab.state.files import filled_or_removed
from editlab.state.ledger import Entry, Ledger
from editlab.state.model_folder import save_model
from editlab.state.packs import apply_pack, read_pack, save_pack
from editlab.state.weights import WeightView

if TYPE_CHECKING:
    from editlab.evaluation.results import Evaluation
    from editlab.models.load import DeviceMap
    from editlab.probes.conflicts.behaviour import Behaviour
    from editlab.probes.result import ProbeResult
    from editlab.probes.routing import Routing
    from editlab.probes.trace_results import Trace

MEMORIES = "memories"  # in a saved model's folder, the pack of its side memories


class LM(Reader):
    """A causal language model with a tokenizer, hooks and a ledger of edits.

    Args:
        model: any Hugging Face causal language model of a supported structure, also in DataParallel or compiled. It
            becomes the base: shared, and never changed.
        tokenizer: its fast tokenizer.
        name: what to call it in files and messages.
        adapter: the model's structure, when detection refuses it.

    Raises:
        AdapterError: the structure was not recognised. ModelError: the model carries adapters, is sharded or is none,
            or the tokenizer gives no character offsets.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, *, name: str = "", adapter: ModelAdapter | None = None
    ) -> None:
        model = unwrapped(model)
        self._start(
            lambda: WeightView(model), lambda: tokenizer, name or getattr(model, "name_or_path", "") or "model", adapter
        )
        self.adapter  # noqa: B018  an unsupported model is refused here, not at its first use
        self.tokenizer  # noqa: B018

    @cached_property
    def ledger(self) -> Ledger:
        """The edits, in order."""
        with self._lock:
            return self.__dict__.setdefault("ledger", Ledger(self._view))

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path | None = None,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        device_map: DeviceMap = None,
        max_memory: dict[int | str, int | str] | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        on_step: OnStep = silent,
    ) -> LM:
        """Load a model by registered name, local folder or hub id; None is the default model.

        Args:
            device_map, max_memory: spread the layers over GPUs, memory and disk, to analyse what fits on no device;
                see `models.load.load`.

        Raises:
            ModelError: it is missing, incomplete, not supported, or larger than what is free.
            PackError: the side memories in its folder are damaged.
        """
        from editlab.models.load import load

        found = load(
            name_or_path,
            dtype=dtype,
            device=device,
            device_map=device_map,
            max_memory=max_memory,
            revision=revision,
            trust_remote_code=trust_remote_code,
            on_step=on_step,
        )
        lm = object.__new__(cls)
        lm._start(lambda: WeightView(found.model), lambda: found.tokenizer, found.name, None)
        if (found.path / MEMORIES).is_dir():
            # Made for the weights that lie beside it, whichever dtype they are read in.
            apply_pack(read_pack(found.path / MEMORIES), lm.ledger, force=True)
        return lm

    def __repr__(self) -> str:
        a = self.adapter
        n = len(self.ledger.active)
        state = "base" if n == 0 else f"{n} edit{'s' if n > 1 else ''} active"
        return f"LM({self.name}: {a.family}, {a.n_layers} layers, d_model {a.d_model}, {state})"

    def _repr_html_(self) -> str:
        import html

        return f"<p><b>{html.escape(repr(self))}</b></p>{self.ledger._repr_html_()}"

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
        from editlab.edits.engine import engine
        from editlab.evaluation.prefixes import settle

        rows = [requests] if isinstance(requests, dict | Fact) else _rows(requests)
        facts = settle(self, [read_fact(row, f"Request {i}") for i, row in enumerate(rows)])
        compute = engine(self, method, config)
        with self._lock:
            return self.ledger.apply(compute(facts, on_step))

    def undo(self, id: str | None = None, *, replay: bool = False, on_step: OnStep = silent) -> Entry:
        """Take an edit back (the latest active one by default).

        Args:
            replay: solve the edits that came after it again, in order, on the state without it. Pruned heads rest on
                no state and are put back as they were.

        Raises:
            UnknownName: there is no such edit, or it is not active. ConfigError: no edit is active.
            EditFailed, RequestError: an edit cannot be solved again; everything is as before.
        """
        if id is None:
            if not self.ledger.active:
                raise ConfigError("There is no edit to undo.", "Make one first.")
            id = self.ledger.active[-1].id
        with self._lock:
            if not replay:
                return self.ledger.remove(id)
            from editlab.edits.replay import undo_and_replay

            return undo_and_replay(self, id, on_step)

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

    def on_own_weights(self) -> LM:
        """A copy to train: every weight is its own, with the edits of weights folded in; side memories stay edits.

        Writing to its parameters in place reaches no other LM. Its hashes are those of the moment it was made.
        """
        with self._lock:
            model = self._view.on_own_weights()
            twin = self._twin(WeightView(model))
            for entry in self.ledger.active:
                if entry.edit.routing is not None:
                    twin.ledger.apply(entry.edit)
            return twin

    def _twin(self, view: WeightView) -> LM:
        """An LM on another view, with what is already known of the tokenizer; it does not keep this one alive."""
        twin = object.__new__(LM)
        twin._start(lambda: view, self._read_tokenizer, self.name, self.adapter)
        known = ("tokenizer", "tokenizer_hash", "affixes", "sink_ids")
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

        wanted = HeadGains(dict.fromkeys(heads_of(heads), gain), means or {})
        with self._lock:
            return self.ledger.apply(head_edit(self.model, self.adapter, wanted))

    def locate(
        self,
        prompt: str,
        subject: str,
        *,
        answer: str | None = None,
        target_prefix: str = "auto",
        on_step: OnStep = silent,
        **config: Any,
    ) -> Trace:
        """Causal tracing of one prompt; see `editlab.probes.trace`.

        Args:
            prompt: text with {} for the subject, or with the subject in it once.
            answer: what to follow; default what the model says. target_prefix: what stands in front of it.

        Raises:
            RequestError: the subject is not in the prompt, or its corruption changes the answer too little.
        """
        from editlab.config import build
        from editlab.probes.trace import Config, trace

        # A trace asks for no new answer; the fact is there to place the subject.
        if not subject.strip():
            raise RequestError("A trace needs a subject, whose tokens are corrupted.", "Name it as in the prompt.")
        row = {"prompt": prompt, "subject": subject, "target_new": answer or "?", "target_prefix": target_prefix}
        fact = read_fact(row)
        return trace(self, fact, build(Config, config, "the trace"), on_step, answer=answer)

    def probe(self, prompts: str | Sequence[str], name: str, *, on_step: OnStep = silent, **config: Any) -> ProbeResult:
        """What a probe of prompts finds; `editlab ls probes` names them, `config` are the probe's settings.

        Raises:
            UnknownName: there is no such probe. ConfigError: a setting is invalid. RequestError: a prompt is empty.
        """
        from editlab import registry
        from editlab.config import build

        module = registry.get(name, "probes")
        settings = build(module.Config, config, f"probe '{name}'")
        found: ProbeResult = module.run(self, check_texts(prompts), settings, on_step)
        return found

    def conflicts(
        self, relation: str, *, formats: Sequence[str] = (), on_step: OnStep = silent, **settings: Any
    ) -> Behaviour:
        """Who wins when a context contradicts what this model knows; see `editlab.probes.conflicts.behaviour`.

        Args:
            relation: one of `editlab ls relations`. formats: further formats of context.
            settings: of the items, such as format="paragraph" or draws=5.

        Raises:
            RequestError: the model knows too few of the relation's facts.
        """
        from editlab.config import build
        from editlab.data.conflicts import cases_of_relation
        from editlab.probes.conflicts.behaviour import probe
        from editlab.probes.conflicts.items import ItemSettings

        items = build(ItemSettings, settings, "the conflicts")
        return probe(self, cases_of_relation(relation), items, formats=formats, on_step=on_step)

    def route(self, prompts: str | Sequence[str], *, sink: bool = False) -> Routing:
        """Which side memory answers each prompt, and why; empty without side memories."""
        from editlab.probes.routing import routing_of

        return routing_of(self, check_texts(prompts) if prompts else [], sink=sink)

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

        rows = [read_fact(row, f"Fact {i}") for i, row in enumerate(_rows(facts))] if facts is not None else None
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
        with self._lock, filled_or_removed(folder):
            save_model(folder, self.model, self.tokenizer)
            if any(e.edit.routing is not None for e in self.ledger.active):
                save_pack(folder / MEMORIES, self.on_own_weights().ledger, str(folder))
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


def _rows(given: Any) -> list[Any]:
    """Raises RequestError: it is no list of facts."""
    if isinstance(given, Iterable):
        return list(given)
    raise RequestError(
        f"{given!r:.60} is no fact.", "Give a row with prompt, subject and target_new, or a list of them."
    )

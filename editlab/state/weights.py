"""Views: edited copies of a model that share every tensor with an untouched base.

A view is a deep copy of the module tree in which every parameter and buffer is the base's own object, so
it costs about a megabyte. The rules, in order:

1. The first edit of a parameter gives the view its own copy, once, and puts it in every place that held the
   shared one: ties inside the view, and the trees made from it (nnsight, TransformerLens).
2. Later edits change that copy in place, so whoever holds it sees them at once.
3. Undoing the last edit of a parameter puts the base's own object back in the same places.
4. The base is never written. A view whose parameters all equal the base shares all of them.

Weights are identified by content (`hashes.py`); hashes are computed when asked for, cached, and only edited tensors
are hashed again.

Replacing weights for one call (`torch.func.functional_call`) was measured to disturb concurrent forwards of
the base; views do not.
"""

from __future__ import annotations

import difflib
import logging
import math
import threading
import weakref
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from editlab.errors import EditFailed, EditlabError, UnknownName
from editlab.hooks.routing import Routes
from editlab.state.hashes import Fingerprint, combine_hashes, tensor_sha256
from editlab.state.sharing import Swap, own_copy, rebind, structural_clone, weight_sources

log = logging.getLogger(__name__)

OnChange = Callable[[tuple[str, ...]], None]


class WeightView:
    """An edited copy of a model that shares every unedited tensor with its base.

    >>> view = WeightView(model)
    >>> view.write("transformer.h.0.mlp.c_proj.weight", new)   # only view.model changes
    >>> view.write("transformer.h.0.mlp.c_proj.weight", None)  # the base's own tensor is back

    Args:
        base: the model to share. It must stay as it is while views of it exist.

    Attributes:
        model: the edited module tree, in eval mode whatever mode the base is in.
        routes: side memories that change the output of some of its modules; not part of any weight.
        on_change: called after each write with the names that changed. An exception in a callback is
            logged, since the weights have changed already.
        lock: held during writes; hold it to read several tensors of one state.

    Raises:
        EditlabError: the base carries foreign hooks (see `structural_clone`).
    """

    def __init__(self, base: nn.Module) -> None:
        self._base_model = base
        self.model = structural_clone(base).eval()
        self._base: dict[str, nn.Parameter] = dict(base.named_parameters())
        first = {id(p): name for name, p in self._base.items()}
        self._canonical = {n: first[id(p)] for n, p in base.named_parameters(remove_duplicate=False)}
        self._own: dict[str, nn.Parameter] = {}
        self._own_hashes: dict[str, str] = {}
        self.routes = Routes(self.model)
        self._roots: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        ties = {alias: name for alias, name in self._canonical.items() if alias != name}
        self._fingerprint = Fingerprint(weight_sources(base), ties)
        self.on_change: list[OnChange] = []
        self.lock = threading.RLock()

    # names and tensors

    def names(self) -> list[str]:
        """Parameter names in model order; tied parameters once, under their first name."""
        return list(self._base)

    def resolve(self, name: str) -> str:
        """The first name of a parameter that may be given by a tied name.

        Raises:
            UnknownName: the model has no such parameter.
        """
        if name not in self._canonical:
            close = difflib.get_close_matches(name, list(self._canonical), n=3)
            hint = f"Did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
            raise UnknownName(f"The model has no parameter '{name}'.", f"{hint}See names() for all.")
        return self._canonical[name]

    def base(self, name: str) -> nn.Parameter:
        """The base's own parameter. Never write to it."""
        return self._base[self.resolve(name)]

    def current(self, name: str) -> nn.Parameter:
        """The parameter as the view has it: the base's own object unless it is edited."""
        name = self.resolve(name)
        return self._own.get(name, self._base[name])

    @property
    def edited(self) -> list[str]:
        """Names of the parameters that differ from the base, in model order."""
        return [name for name in self._base if name in self._own]

    # hashes

    def base_sha256(self, name: str) -> str:
        """Content hash of one base tensor."""
        return self._fingerprint.sha256(self.resolve(name))

    @property
    def base_hash(self) -> str:
        """Content hash of the base: all parameters and persistent buffers."""
        return self._fingerprint.root()

    @property
    def weights_hash(self) -> str:
        """Content hash of the weights as they are."""
        with self.lock:
            for name in self._own.keys() - self._own_hashes.keys():
                self._own_hashes[name] = tensor_sha256(self._own[name])
            replaced = {name: self._own_hashes[name] for name in self._own}
        return self._fingerprint.root(replaced) if replaced else self.base_hash

    @property
    def current_hash(self) -> str:
        """Content hash of the edited state, side memories included; `base_hash` exactly when nothing is edited."""
        return self._with_routes(self.weights_hash, self.routes.digest)

    def hash_with(self, values: Mapping[str, Tensor | None], routes: str = "") -> str:
        """What `current_hash` would be if these were the only edits, and `routes` the memories' digest."""
        prepared = {self.resolve(name): self._prepare(name, value) for name, value in values.items()}
        root = self._fingerprint.root({n: tensor_sha256(t) for n, t in prepared.items() if t is not None})
        return self._with_routes(root, routes)

    @staticmethod
    def _with_routes(weights: str, routes: str) -> str:
        return combine_hashes({"weights": weights, "routes": routes}) if routes else weights

    # writing

    def write(self, name: str, value: Tensor | None) -> None:
        """Set one parameter; see `write_all`."""
        self.write_all({name: value})

    def write_all(self, values: Mapping[str, Tensor | None]) -> None:
        """Set several parameters, all or none.

        Args:
            values: per parameter its new value, in the parameter's stored layout and shape, any float
                dtype (it is cast); None puts the base's tensor back, and so does a value equal to it.

        Raises:
            UnknownName: no such parameter.
            EditFailed: a value is not finite, or overflows the parameter's dtype.
            EditlabError: wrong shape, or the parameter is offloaded, integer or quantised.
        """
        with self.lock:
            prepared = {self.resolve(name): self._prepare(name, value) for name, value in values.items()}
            if len(prepared) < len(values):
                raise EditlabError("Two of the given names are one tied parameter.", "Give it once.")
            self._commit(prepared)
        self.announce(tuple(prepared))

    def announce(self, names: tuple[str, ...]) -> None:
        """Tell `on_change` that what is computed with these parameters has changed."""
        for callback in list(self.on_change):
            try:
                callback(names)
            except Exception:
                log.exception("A callback failed after the weights changed")

    def _prepare(self, name: str, value: Tensor | None) -> Tensor | None:
        """Check one value and cast it; None when the parameter should be the base's own."""
        base = self.base(name)
        if value is None:
            return None
        if base.device.type == "meta":
            raise EditlabError(f"Cannot edit '{name}': its weights are offloaded.", "Load the model onto one device.")
        if not base.is_floating_point() or base.element_size() < 2 or base.layout != torch.strided:
            raise EditlabError(
                f"Cannot edit '{name}': it is quantised (stored as {base.dtype}).",
                "Load the model in float32, bfloat16 or float16.",
            )
        if value.shape != base.shape:
            raise EditlabError(
                f"Cannot edit '{name}': the new value has shape {tuple(value.shape)}, "
                f"the parameter {tuple(base.shape)}.",
                "Give it in the parameter's stored layout (GPT-2's Conv1D stores (in, out)).",
            )
        # Not an inference tensor, whatever mode the caller is in: training must stay possible.
        with torch.inference_mode(False), torch.no_grad():
            cast = value.detach().to(base.device, base.dtype)
        if not bool(torch.isfinite(cast).all()):
            raise EditFailed(
                f"The new value of '{name}' is not finite, or too large for {base.dtype}.",
                "Nothing was changed.",
            )
        return None if torch.equal(cast, base) else cast

    def _commit(self, prepared: Mapping[str, Tensor | None]) -> None:
        """Write checked values; whatever stops it midway, the weights end as they were."""
        own_after, swaps, copies = dict(self._own), [], []
        with torch.inference_mode(False), torch.no_grad():
            for name, value in prepared.items():
                base, own = self._base[name], self._own.get(name)
                if value is not None and own is not None:
                    copies.append((own, value, own.detach().clone()))
                elif value is not None:
                    own_after[name] = own_copy(base, value)
                    swaps.append(Swap(base, own_after[name]))
                elif own is not None:
                    swaps.append(Swap(own, base))
                    del own_after[name]
            roots, keep = [self.model, *self._roots], self._identities()
            try:
                for own, value, _ in copies:
                    own.copy_(value)
                if swaps:
                    rebind(roots, swaps, keep)
                self._own = own_after
            except BaseException:
                for own, _, saved in copies:
                    own.copy_(saved)
                rebind(roots, [Swap(swap.new, swap.old) for swap in swaps], keep)
                raise
            finally:
                for name in prepared:
                    self._own_hashes.pop(name, None)

    def _identities(self) -> set[int]:
        return {id(p) for p in [*self._base.values(), *self._own.values()]}

    # other trees

    def attach(self, root: nn.Module) -> None:
        """Let another module tree that shares this view's parameters follow its edits.

        For trees made from `structural_clone(view.model)`, such as an nnsight or TransformerLens wrapper.
        The tree is held weakly.

        Raises:
            EditlabError: the tree shares no parameter with this view.
        """
        with self.lock:
            shared = self._identities()
            if not any(id(p) in shared for p in root.parameters()):
                raise EditlabError(
                    f"This {type(root).__name__} shares no parameter with the view.",
                    "Make it from structural_clone(view.model), and attach it before undoing edits.",
                )
            swaps = [Swap(self._base[name], own) for name, own in self._own.items()]
            rebind([root], swaps, shared)
            self._roots.add(root)

    def fork(self) -> WeightView:
        """An independent view of the same base, with its own copy of the edited tensors."""
        with self.lock:
            twin = WeightView(self._base_model)
            twin._fingerprint = self._fingerprint
            twin.write_all(dict(self._own))
            return twin

    def on_own_weights(self) -> nn.Module:
        """A model like this one as it stands, all of whose parameters are copies; side memories are left out.

        Nothing that is written to it reaches this view or its base.
        """
        with self.lock, torch.inference_mode(False), torch.no_grad():
            twin = structural_clone(self._base_model).eval()
            swaps = [Swap(base, own_copy(base, self.current(name))) for name, base in self._base.items()]
            rebind([twin], swaps, set())
            return twin

    def __repr__(self) -> str:
        held = sum(math.prod(p.shape) * p.element_size() for p in self._own.values())
        return (
            f"WeightView({type(self.model).__name__}: {len(self._own)} of {len(self._base)} edited, "
            f"{held / 2**20:.1f} MiB of its own)"
        )

"""editlab: a model-editing and interpretability workbench over Hugging Face causal language models.

from editlab import LM
lm = LM.from_pretrained()                       # the default model
lm.edit([{"prompt": "The capital of {} is", "subject": "France", "target_new": "Rome"}])
lm.undo()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from editlab.facts import Fact
    from editlab.hooks.batch import Batch
    from editlab.lm import LM

__all__ = ["LM", "Batch", "Fact"]

_HOME = {"LM": "editlab.lm", "Batch": "editlab.hooks.batch", "Fact": "editlab.facts"}


def __getattr__(name: str) -> Any:
    """Public names are imported at first use, so that `editlab --help` does not load torch."""
    if name in _HOME:
        import importlib

        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'editlab' has no attribute '{name}'")

# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # One fact, from finding it to losing it
# Where a fact lives, what an edit of it does, whether the edit behaves as memory when a context contradicts it, which
# heads and channels have to do with it, and how long it lasts. The model is a fact world, which knows 1,164 facts and
# takes seconds; `LM.from_pretrained()` is the default model, which takes longer.

# %%
from pathlib import Path
from tempfile import mkdtemp

import plotly.express as px
import torch

from editlab import LM, Fact
from editlab.data.conflicts import cases_of_relation
from editlab.data.relations import relation
from editlab.evaluation.known import known
from editlab.notebook import progress
from editlab.probes.channels.weights import layer_heads
from editlab.probes.conflicts.items import ItemSettings, build_items
from editlab.runs import edit_and_measure
from editlab.runs.edited_conflicts import edited_conflicts
from editlab.runs.memory.run import run_memory
from editlab.runs.memory.survive import SurviveSettings
from editlab.runs.memory.verbs import VERBS

lm = LM.from_pretrained("factworld-llama")
fact: Fact = next(f for f in known(lm, relation("capital")).facts() if f.subject == "Peru")
fact.text, fact.target_true, fact.target_new

# %% [markdown]
# ## Where
# The state at the subject's last token carries the capital from the first layers on.

# %%
trace = lm.locate(fact.prompt, fact.subject, answer=fact.target_true, on_step=progress())
trace.plot()

# %% [markdown]
# ## Edit it there

# %%
report = edit_and_measure(lm, fact, "rome", on_step=progress())
report.plot()

# %%
entry = report.entry
entry

# %% [markdown]
# ## Against a context
# Facts of the same relation, each edited alone: does a contradicting context win as often against what was written as
# against what was learned, and do the same heads bring the answer?

# %%
base = lm.pristine()
items = build_items(base, cases_of_relation("capital"), ItemSettings(subjects=40))
behaviour = edited_conflicts(base, items.split("discovery"), "rome", facts=3, on_step=progress())
print(behaviour.headline)
behaviour.plot()

# %% [markdown]
# The five heads whose score changed most (difference of logits, exact path patching).

# %%
before, after = (behaviour.heads[name].mean for name in ("before", "after"))
change = torch.as_tensor(after - before)
top = change.abs().flatten().topk(5).indices
[(f"{int(i) // change.shape[1]}.{int(i) % change.shape[1]}", round(float(change.flatten()[i]), 3)) for i in top]

# %% [markdown]
# ## Channels
# A rank-one edit of an MLP writes one direction. The weights of attention are as they were, so the channels between
# heads are too; what is new is what they can read. How much of the written direction passes through each later
# head's value matrix, over a random direction's share.

# %%
(name,) = entry.edit.deltas
written = lm.model.get_parameter(name) - base.model.get_parameter(name)  # (d_model, d_mlp), rank one
direction = torch.linalg.svd(written.double(), full_matrices=False).U[:, 0].float()
rows = []
for layer in range(1, lm.adapter.n_layers):
    heads = layer_heads(lm, layer)
    values = torch.einsum("d,gde->ge", direction, heads.v)[heads.group]
    chance = heads.v.square().sum((1, 2))[heads.group].div(lm.adapter.d_model).sqrt()
    rows.append(values.norm(dim=1) / chance)
px.imshow(
    torch.stack(rows), y=[str(i) for i in range(1, lm.adapter.n_layers)], labels={"x": "head", "y": "layer"},
    color_continuous_scale="Cividis", title="written direction read by values, over chance (1)",
)  # fmt: skip

# %% [markdown]
# ## How long does it last?
# The edited model is trained on other text, on a private copy, and asked in between.

# %%
settings = SurviveSettings(engines=("loaded edits",), seeds=1, filler_lr=3e-3, times=(1, 2, 5, 10, 20))
lasting = run_memory(lm, VERBS["survive"], settings, Path(mkdtemp()), progress())
print(lasting.headline)
lasting.plot()

# %% [markdown]
# And back, bit for bit.

# %%
lm.undo(entry.id)
assert lm.state_hash == lm.base_hash

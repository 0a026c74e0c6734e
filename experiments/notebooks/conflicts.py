# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Memory against context
# A prompt contradicts what a model knows: who wins, which heads decide, and how to turn the balance. The model is a
# fact world, which takes a minute; `LM.from_pretrained()` is the default model, which takes longer.

# %%
from editlab import LM
from editlab.data.conflicts import cases_of_relation
from editlab.probes.conflicts.flow import flow
from editlab.probes.conflicts.heads import map_heads
from editlab.probes.conflicts.items import ItemSettings, build_items
from editlab.probes.conflicts.levers import compare
from editlab.probes.conflicts.prune import PruneSettings, prune
from editlab.runs.edited_conflicts import edited_conflicts

lm = LM.from_pretrained("factworld-gpt2")

# %% [markdown]
# ## Who wins
# The same known facts under several formats of context. Closed-book is what memory gives; an agreeing and an irrelevant
# context are controls.

# %%
behaviour = lm.conflicts("capital", subjects=20, formats=["reversed"])
behaviour.plot()

# %% [markdown]
# ## Where
# Layers knocked out, attention cut, and the stream read, on the discovery subjects.

# %%
items = build_items(lm, cases_of_relation("capital"), ItemSettings(subjects=20))
where = flow(lm, items.split("discovery"))
where.plot()

# %% [markdown]
# ## Which heads
# Exact path patching of every head. Purple pushes memory's answer, orange the context's.

# %%
heads = map_heads(lm, items.split("discovery"))
heads.plot()

# %%
heads.to_pandas().head(8)

# %% [markdown]
# ## Pruning them
# K is chosen on validation subjects and measured on test subjects, beside random heads of the same layers.

# %%
pruned = prune(lm, items, heads, PruneSettings(direction="memory", controls=5))
pruned.plot()

# %%
pruned.to_pandas()

# %% [markdown]
# Kept, it is an entry of the ledger like any edit: undone to the bit, saved, exported.

# %%
base = lm.state_hash
entry = lm.prune_heads(pruned.best.heads)
print(entry)
lm.undo(entry.id)
assert lm.state_hash == base

# %% [markdown]
# ## Every lever beside the others

# %%
levers = compare(lm, items, heads, "memory", settings=PruneSettings(controls=0), juice=False)
levers.plot()

# %% [markdown]
# ## Does an edit behave as memory?
# The same contexts before and after an edit, and every head's score before against after.

# %%
edited = edited_conflicts(lm, items.split("discovery"), "ft", {"layer": 2, "steps": 15}, facts=3)
edited.plot()

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
# # Where is a fact?
# Causal tracing of one prompt in the default model: corrupt the subject, restore one state at a time, and see which
# restores the answer.

# %%
from editlab import LM
from editlab.notebook import progress

lm = LM.from_pretrained()
found = lm.locate("The capital of {} is", "France", samples=3, on_step=progress())
found

# %%
found.plot()

# %% [markdown]
# The same with the outputs of MLPs restored, a few layers together: where an edit of one MLP may be tried.

# %%
mlps = lm.locate("The capital of {} is", "France", kind="mlp", samples=2, on_step=progress())
print(mlps.suggest_layers())
mlps.plot()

# %% [markdown]
# What each layer would say if the model ended there.

# %%
lens = lm.probe("The capital of France is", "logit-lens")
lens.plot()

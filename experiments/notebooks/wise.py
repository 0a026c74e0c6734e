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
# # A side memory beside the weights
# WISE writes edits into a copy of one MLP and decides prompt by prompt whether the copy answers. No weight of the model
# changes.

# %%
from editlab import LM
from editlab.data.relations import relation
from editlab.evaluation.known import known
from editlab.notebook import progress

lm = LM.from_pretrained("factworld-llama")
facts = known(lm, relation("capital")).facts()[:3]
entry = lm.edit(facts, "wise", on_step=progress())
print(entry)
assert lm.weights_hash == lm.pristine().weights_hash

# %% [markdown]
# Who answers what: the indicator of every prompt beside its threshold.

# %%
asked = [fact.text for fact in facts] + [f"{fact.subject} is a country in" for fact in facts]
routing = lm.route([*asked, "The river flows through the old town and"])
routing

# %%
routing.plot()

# %% [markdown]
# Measured, and taken back.

# %%
scores = lm.evaluate(facts, metrics=["efficacy_said", "paraphrase_said", "control_kl"])
scores

# %%
lm.undo(entry.id)
assert lm.state_hash == lm.base_hash

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
# # Edit a fact
# One fact of the default model is rewritten, measured, undone bit for bit, and kept as a small file.

# %%
from tempfile import mkdtemp

from editlab import LM, Fact
from editlab.notebook import progress
from editlab.runs import edit_and_measure

lm = LM.from_pretrained()
fact = Fact(
    prompt="The capital of {} is",
    subject="France",
    target_new="Rome",
    target_true="Paris",
    paraphrases=["{}'s capital city is"],
    neighbours=["The capital of Germany is", "The capital of Spain is"],
)
report = edit_and_measure(lm, fact, "rome", {"contexts": {5: 2}}, on_step=progress())
report

# %%
report.plot()

# %% [markdown]
# The ledger knows every edit. An edit pack is bound to the weights that it was made for.

# %%
pack = lm.save_edits(mkdtemp())
other = lm.pristine()  # another view of the same weights, unedited
other.load_edits(pack)
assert other.state_hash == lm.state_hash != lm.base_hash
lm.undo(report.entry.id)
assert lm.state_hash == lm.base_hash
lm.redo(report.entry.id)
lm

# %% [markdown]
# What it cost, beside the unedited model, with intervals.

# %%
lm.evaluate([fact], metrics=["efficacy", "paraphrase", "neighbourhood", "control_kl", "norm_ratio"])

# %% [markdown]
# Another method on the same facts: many at once, on a fact world, which takes a second.

# %%
from editlab.data.relations import relation
from editlab.evaluation.known import known
from editlab.viz.scores import score_points

world = LM.from_pretrained("factworld-llama")
facts = known(world, relation("language")).facts()[:8]
world.edit(facts, "memit")
scores = world.evaluate(facts, metrics=["efficacy", "paraphrase", "neighbourhood"])
score_points({line.metric: line.edited for line in scores.lines}, "share of eight facts")

# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Channels between heads
# Which heads of the default model speak to which, through what directions, and does it matter?

# %%
from editlab import LM
from editlab.probes.channels import causal, tasks
from editlab.probes.channels.components import component_edit
from editlab.probes.channels.parts import Channel, Part
from editlab.probes.channels.readout import read_out
from editlab.probes.channels.scan import Config, scan
from editlab.viz.channel_effects import channel_graph
from editlab.viz.channels import spectrum, writers_map

lm = LM.from_pretrained()

# %% [markdown]
# Every component of every head against every later reader of queries. The null is pairs in the wrong order, which
# cannot speak to each other; outliers are hypotheses.

# %%
found = scan(lm, Config(modes=("q",)))
print(found.headline)
found.to_pandas(limit=10)

# %%
found.plot("q")

# %% [markdown]
# One reader, as the paper draws it: the best component of each earlier head.

# %%
reader = Part(23, 7)
writers_map(found, reader, "q")

# %%
part = Part(20, 0, 0)
spectrum(found, part, reader, "q")

# %% [markdown]
# What it writes and reads in tokens, a heuristic. Here names (` Alex`, `Jamie`) are read against ` she` and ` her`.

# %%
read_out(lm, found.factors, part).to_pandas()

# %% [markdown]
# Now intervene: cut the edge to each of two readers, remove the source, and do the same with matched controls. (Use
# 200 prompts for a claim; 12 keep this notebook short.)

# %%
channels = [Channel(part, Part(23, 0), "q"), Channel(part, reader, "q")]
prompts = tasks.ioi(lm, 12)
tests = causal.verify(lm, channels, prompts, found, causal.Config(controls=20, passages=1))
print(tests.headline)
tests.to_pandas()[["source", "target", "status", "edge", "edge_low", "edge_high", "edge_controls95", "node", "why"]]

# %%
tests.plot()

# %%
channel_graph(tests.to_pandas(), lm.adapter.n_layers, lm.adapter.n_heads)

# %% [markdown]
# As an edit of the weights it is an entry of the ledger: undone bit for bit, saved, composed with others.

# %%
prompt = prompts[0].text
before = lm.generate(prompt, 5)
entry = lm.ledger.apply(component_edit(lm, [part], 0.0))
print(entry, before, lm.generate(prompt, 5), sep="\n")
lm.undo(entry.id)
assert lm.state_hash == lm.base_hash

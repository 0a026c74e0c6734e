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
# # An edited model in nnsight and in TransformerLens, and back
# The default model is edited here, looked at with two other libraries over the same weights, and changed by what was
# seen there. `pip install 'editlab[interop]'` brings both.

# %%
import nnsight
import plotly.express as px
import plotly.graph_objects as go
import torch

from editlab import LM

lm = LM.from_pretrained()
row = {"prompt": "The capital of {} is", "subject": "France", "target_new": "Rome"}
entry = lm.edit(row, "rome", contexts={5: 1})
prompt = "The capital of France is"
ids = lm.encode(prompt).ids
rome, paris = (lm.tokens(text, special=False)[0][0] for text in (" Rome", " Paris"))

# %% [markdown]
# ## nnsight
# A trace of its own over the edited weights: the stream after every layer, read through the unembedding. From which
# layer on is Rome ahead of Paris? The same with the edit undone: the wrapper follows, as the weights are shared.

# %%
wrapped = lm.to_nnsight()


def lens() -> list[float]:
    """Logit of Rome minus that of Paris after each layer."""
    with wrapped.trace(ids):
        states = nnsight.save([layer.output for layer in wrapped.model.layers])
    model = lm.model
    out = []
    for state in states:
        x = state[0] if isinstance(state, tuple) else state
        logits = model.lm_head(model.model.norm(x.reshape(-1, x.shape[-1])[-1]))
        out.append(float(logits[rome] - logits[paris]))
    return out


edited = lens()
lm.undo(entry.id)
plain = lens()
lm.redo(entry.id)
figure = go.Figure([go.Scatter(y=edited, name="edited"), go.Scatter(y=plain, name="unedited", line_dash="dash")])
figure.update_layout(xaxis_title="layer", yaxis_title="logit of Rome - Paris")

# %% [markdown]
# ## TransformerLens
# Its hooks on the same edited weights: each head's direct effect on the answer is what its output adds along Rome minus
# Paris.

# %%
bridge = lm.to_bridge()
logits, cache = bridge.run_with_cache(ids)
assert float((logits - lm.forward(lm.encode(prompt))).abs().max()) < 1e-2
direction = bridge.unembed.W_U[:, rome] - bridge.unembed.W_U[:, paris]
effects = []
for layer in range(lm.adapter.n_layers):
    z = cache[f"blocks.{layer}.attn.hook_z"][0, -1]  # (heads, e)
    z = z.reshape(lm.adapter.n_heads, -1)
    effects.append(torch.einsum("he,hed,d->h", z, bridge.blocks[layer].attn.W_O, direction))
effects = torch.stack(effects)
px.imshow(effects, labels={"x": "head", "y": "layer"}, color_continuous_scale="PuOr", color_continuous_midpoint=0)

# %% [markdown]
# ## And back
# The head that speaks most for Rome is pruned here, as an entry of the ledger, and both libraries see it at once.

# %%
layer, head = divmod(int(effects.argmax()), effects.shape[1])
pruned = lm.prune_heads([(layer, head)])
assert lm.take_back(wrapped) is lm and lm.take_back(bridge) is lm
print(f"{layer}.{head} pruned:", lm.generate(prompt, 5))
here, there = lm.forward(lm.encode(prompt))[0, -1], bridge(ids)[0, -1]
assert float((here - there).abs().max()) < 1e-2
lm.undo(pruned.id)
lm.undo(entry.id)
assert lm.state_hash == lm.base_hash

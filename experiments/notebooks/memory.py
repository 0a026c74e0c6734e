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
# # What does a model keep of what it saw a few times?
#
# A small fact world studies sentences, is trained on other text, and is asked again; then the same for facts that were
# edited into it. Everything is trained on private copies: `lm` stays as it is.

# %%
from pathlib import Path
from tempfile import mkdtemp

from editlab import LM
from editlab.data.stimuli import stimuli
from editlab.runs.memory.run import run_memory
from editlab.runs.memory.settings import StudySettings
from editlab.runs.memory.survive import SurviveSettings
from editlab.runs.memory.verbs import VERBS

lm = LM.from_pretrained("factworld-llama")
folder = Path(mkdtemp())
stimuli("sentence", 2).pairs, stimuli("synonym", 2).pairs

# %% [markdown]
# ## Recognition and recall, then retention
# Both texts of every pair are studied in turn, so recognition without any study is exactly one half.

# %%
settings = StudySettings(items=8, seeds=1, exposures=8, lr=1e-3, times=(1, 2, 3, 5, 8, 13, 20))
study = run_memory(lm, VERBS["retain"], settings, folder / "retain")
study

# %%
study.figures()["exposures"]

# %%
study.figures()["retention"]

# %% [markdown]
# Which curve of forgetting fits? Four families, compared by AICc; parameters with intervals from resampled items.

# %%
study.forgetting(resamples=50)["recall"]

# %% [markdown]
# ## Taught by training, or by an edit: which lasts?

# %%
engines = ("train, matched", "memit", "alphaedit")
lasting = SurviveSettings(engines=engines, items=8, seeds=1, lr=1e-3, filler_lr=3e-3, times=(1, 5, 20))
survival = run_memory(lm, VERBS["survive"], lasting, folder / "survive")
survival

# %%
survival.plot()

"""Few-shot memory: what a private copy of the model keeps of texts that it sees a few times, or of edits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st
from editlab_apps import commands, errors, forms, links, panel, session, work

from editlab import registry
from editlab.config import build
from editlab.data.stimuli import KINDS
from editlab.runs import run_folder
from editlab.runs.memory.learner import memory_needed
from editlab.runs.memory.live import so_far
from editlab.runs.memory.settings import PRESETS, preset, spread
from editlab.runs.memory.survive import ENGINES, LOADED, MATCHED, TRAIN
from editlab.runs.memory.verbs import VERBS
from editlab.runs.records import list_runs, read_record
from editlab.viz.files import page_html
from editlab.viz.memory import memory_live

TITLE = "Memory"
SECTION = "Analyse"
ORDER = 30

SLOT, COST = "memory", "memory.cost"
RUN = "me.run"  # the folder of the study that was begun last
EVERY = "3s"
ASKS = {  # in this order; a verb without an entry has its own name, and a form of all its settings
    "recognize": "Recognition: tell studied texts from foils",
    "recall": "Recall: say the second half of a studied text",
    "retain": "Retention: both, while training goes on with other text",
    "survive": "Survival: edits against training, under further training",
    "acquire": "Acquisition: passages injected into training",
    "order": "Order: which of two passages came first (a control)",
    "unlearn": "Forgetting: half of what was studied, by dampening weights",
}
STUDIES = ("recognize", "recall", "retain")
AFTER_STUDY = {"order": "Pairs of passages", "unlearn": "Pairs in all"}


def page() -> None:
    """Draw the page."""
    st.header("Memory")
    lab = session.lab()
    st.caption(
        "This trains: on a full private copy, which starts from the model as it stands, edits included, and is dropped "
        "at the end. Your model and ledger stay as they are."
    )
    verbs = sorted(VERBS, key=[*ASKS, *VERBS].index)
    verb = st.selectbox("Question", **links.chosen("me_verb", verbs, lambda verb: ASKS.get(verb, verb)))
    links.check("me_verb", "question", verb, f"there are {', '.join(verbs)}")
    with errors.shown():
        _form(lab, str(verb))
    _interrupted(lab)
    _cost(lab)
    ran = panel.result(lab, SLOT, "Nothing studied yet.", "Press Begin: curves with their intervals will stand here.")
    if ran is not None:
        _result(ran)
    elif lab.job is not None and lab.working_on == SLOT and RUN in st.session_state:
        st.fragment(_under_way, run_every=EVERY)(st.session_state[RUN])


def _form(lab: session.Lab, verb: str) -> None:
    with st.form("me_form"):
        if verb in ASKS:
            values = _study_fields(verb) if verb in STUDIES else _other_fields(lab, verb)
        else:
            own = VERBS[verb].settings
            values = forms.fields(own, list(own.model_fields), {}, f"me.{verb}.")
        with st.container(horizontal=True):
            wanted = st.form_submit_button("Begin", type="primary", disabled=lab.job is not None)
            asked = st.form_submit_button(
                "Estimate", disabled=lab.job is not None, help="Times one update and a probe."
            )
    settings = build(VERBS[verb].settings, values, f"memory {verb}")
    need = memory_needed(lab.lm, settings.scope) / 1e9
    st.caption(f"Needs {need:.2g} GB of memory beside the model: a copy, gradients, and Adam's two moments.")
    if wanted:
        folder = run_folder("memory", lab.lm.base_hash, lab.runs_root)
        lab.start(SLOT, "Studying memory", work.memory(lab.lm, verb, settings, folder))
        st.session_state[RUN] = folder
        st.rerun()
    if asked:
        lab.start(COST, "Trying one update", work.memory_cost(lab.lm, verb, settings))
        st.rerun()
    panel.command(commands.memory(lab.lm.name, verb, values))


def _study_fields(verb: str) -> dict[str, Any]:
    columns = st.columns(3)
    kind = columns[0].selectbox(
        "Pairs", **links.chosen("me_kind", list(KINDS), lambda kind: f"{kind}: {KINDS[kind][0]}")
    )
    size = columns[1].number_input("Pairs in all", 2, 600, PRESETS["quick"]["items"], **links.bound("me_n"))
    seeds = columns[2].number_input("Seeds", 1, 10, 1, **links.bound("me_seeds"))
    columns = st.columns(3)
    exposures = columns[0].number_input("Exposures", 1, 50, 3, **links.bound("me_k"))
    lr = columns[1].number_input("Learning rate", 1e-6, 1e-1, 3e-4, 1e-4, "%g", **links.bound("me_lr"))
    fill = columns[2].number_input(
        "Updates on other text", 1, 1000, 20, **links.bound("me_fill"), disabled=verb != "retain"
    )
    own = st.toggle("Study the foils too, in a second run (chance is then exactly one half)", True, key="me_both")
    links.check("me_kind", "kind of pairs", kind, f"there are {', '.join(KINDS)}")
    links.check("me_n", "number of pairs", size, "2 to 600")
    values: dict[str, Any] = preset("quick", retain=False)
    values |= {"kinds": (kind,), "items": int(size), "seeds": int(seeds), "exposures": int(exposures), "lr": float(lr)}
    values |= {"counterbalance": own, "rouge": verb == "recall"}
    return values | ({"times": spread(int(fill))} if verb == "retain" else {})


def _other_fields(lab: session.Lab, verb: str) -> dict[str, Any]:
    columns = st.columns(3)
    begins = 3e-4 if verb in AFTER_STUDY else 1e-4
    lr = columns[0].number_input("Learning rate", 1e-6, 1e-1, begins, 1e-4, "%g", **links.bound("me_lr"))
    seeds = columns[1].number_input("Seeds", 1, 10, 1, **links.bound("me_seeds"))
    values: dict[str, Any] = {"lr": float(lr), "seeds": int(seeds)}
    if verb in AFTER_STUDY:
        exposures = columns[2].number_input("Exposures", 1, 50, 3, **links.bound("me_k"))
        size = st.number_input(AFTER_STUDY[verb], 4, 200, 16, **links.bound("me_n"))
        return values | {"exposures": int(exposures), "items": int(size)}
    fill = columns[2].number_input("Updates on other text", 3, 1000, 20, **links.bound("me_fill"))
    if verb == "acquire":
        return values | {"after": int(fill)}
    values["times"] = spread(int(fill))
    if lab.lm.ledger.active:
        st.caption("The facts of your ledger are followed.")
        return values | {"engines": (LOADED,)}
    quick = [engine for engine in ENGINES if engine not in (TRAIN, "wise")]
    chosen = st.multiselect("Who teaches", [TRAIN, MATCHED, *registry.names()], quick, key="me_engines")
    size = st.number_input("Facts", 2, 200, 8, **links.bound("me_n"))
    return values | {"engines": tuple(chosen), "items": int(size)}


def _interrupted(lab: session.Lab) -> None:
    runs = [run for run in list_runs(lab.runs_root) if run.state == "interrupted" and run.kind == "memory"]
    if not runs or lab.job is not None:
        return
    with st.container(border=True, horizontal=True, vertical_alignment="bottom"):
        by_name = {run.name: run for run in runs[::-1]}
        name = st.selectbox("Interrupted run", list(by_name), key="me_resume", width=360)
        if st.button("Resume"):
            with errors.shown():
                folder = by_name[str(name)].folder
                lab.start(SLOT, "Going on with a study", work.resume_memory(lab.plain, folder))
                st.session_state[RUN] = folder
                st.rerun()


def _under_way(folder: Path) -> None:
    """Curves of what the journal has so far; they grow with every probe."""
    found = so_far(folder)
    if found is None:
        st.caption("Curves come with the first probe.")
        return
    st.caption(f"So far, {found.probes} probes; means alone. Intervals come at the end.")
    st.plotly_chart(memory_live(found), key="me.live", alt=f"{found.measure} so far, {found.probes} probes")


def _cost(lab: session.Lab) -> None:
    cost = panel.result(lab, COST)
    if cost is not None:
        st.info(cost.text, title="Estimate")


def _result(ran: work.Ran) -> None:
    found = ran.result
    st.subheader("Result")
    st.markdown(errors.plain(found.headline))
    digest = read_record(ran.folder).manifest.get("restored")
    if digest:
        st.badge(f"restored: yes ({digest[:12]})", icon=":material/check:", color="green")
        st.caption("All weights of your model, and its logits on three prompts, are to the bit what they were before.")
    figures = found.figures()
    for name, figure in figures.items():
        panel.chart(figure, "me", f"{name}: {found.headline}", f"{ran.folder.name}-{name}")
    if st.toggle("Show as table", key="me_table"):
        st.dataframe(found.to_pandas(), hide_index=True, alt="Curves with their intervals")
    for remark in found.remarks():
        st.caption(errors.plain(remark))
    with st.expander("Every text, at every probe"):
        st.dataframe(found.rows, hide_index=True, alt="Rows of the study")
    with st.container(horizontal=True):
        drawn = list(figures.values())
        panel.take_away(ran.folder, found.to_pandas, lambda: page_html(found.headline, found._repr_html_(), drawn))


page()

"""Heads of the Conflicts page: their map, which of them to prune, and what that does on held-out items."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import streamlit as st

from editlab.errors import ConfigError
from editlab.hooks.heads import Head, check_heads, head_name, read_heads
from editlab.probes.conflicts.heads import HeadMap
from editlab.probes.conflicts.prune_results import Pruning
from editlab.viz.conflicts import head_map, pruning_curve
from editlab.viz.locate import with_points

from .. import conflict_work, downloads, errors, links, panel, session, work

SLOT = "conflicts.prune"
MODES = {"context": "prune memory heads", "memory": "prune context heads"}  # by where answers shall come from
MOST = 15
CHART, HEADS = "cf_map", "cf_heads"


def draw(lab: session.Lab, ran: work.Ran) -> None:
    """The map, the choice of heads, and the measured effect."""
    found: conflict_work.Analysis = ran.result
    heads, name = found.heads, ran.folder.name
    figure = with_points(head_map(heads))
    figure.data[1].hovertemplate = "layer %{x}, head %{y}<br>S %{customdata:+.3f}<extra></extra>"
    figure.update_layout(title=None, height=min(720, 160 + 28 * heads.mean.shape[1]), margin={"t": 24, "r": 16})
    if st.toggle("Show heads as table", key="cf_heads_table"):
        st.dataframe(heads.to_pandas(), hide_index=True, alt="Score of every head, the strongest first")
    else:
        panel.chart(
            figure,
            CHART,
            heads.headline,
            f"{name}-heads",
            on_select=lambda: take_clicked(st.session_state, f"{name}-heads", heads.mean.shape[0]),
            selection_mode="points",
        )
    st.caption(
        errors.plain(heads.headline) + " S is how much a head's output pushes memory's answer over the context's, in "
        "logits. Query heads with the same kv number share keys and values, and are pruned one by one."
    )
    direction, chosen = _choice(lab, heads)
    if chosen and st.button("Measure effect", type="primary", disabled=lab.job is not None):
        with errors.shown():
            job = conflict_work.measure(lab.lm, found, direction, chosen, lab.runs_root)
            lab.start(SLOT, "Pruning", job)
            st.rerun()
    measured = panel.result(lab, SLOT)
    if measured is not None:
        _effect(lab, measured)


def take_clicked(state: MutableMapping[Any, Any], name: str, n_layers: int) -> None:
    """A head that was clicked joins those that are chosen by hand, or leaves them."""
    points = state[f"{CHART}.{name}"]["selection"]["points"]
    if not points:
        return
    head, layer = divmod(points[0]["point_index"], n_layers)
    try:
        chosen = list(read_heads(state.get(HEADS) or "")) if state.get(HEADS) else []
    except ConfigError:
        chosen = []
    clicked = (layer, head)
    chosen = [h for h in chosen if h != clicked] if clicked in chosen else [*chosen, clicked]
    state[HEADS] = ", ".join(head_name(h) for h in chosen)


def _choice(lab: session.Lab, heads: HeadMap) -> tuple[str, list[Head]]:
    """Where answers shall come from, and the heads to prune, in order."""
    columns = st.columns([2, 2, 3])
    direction = str(
        columns[0].selectbox("Mode", **links.chosen("cf_mode", list(MODES), lambda to: f"{MODES[to]} (to {to})"))
    )
    links.check("cf_mode", "mode", direction, f"there are {', '.join(MODES)}")
    ranked = heads.ranked("context" if direction == "memory" else "memory")
    most = min(MOST, len(ranked))
    k = int(columns[1].slider("Heads, in ranked order", 0, max(1, most), min(5, most), **links.bound("cf_k")))
    text = columns[2].text_input(
        "Or heads by hand", "", placeholder="23.4, 24.1", key=HEADS, help="Click them on the map, or type layer.head."
    )
    by_hand: list[Head] = []
    with errors.shown():
        by_hand = check_heads(lab.lm.adapter, read_heads(text)) if text else []
    chosen = by_hand if text else ranked[:k]
    if chosen:
        shown = ", ".join(f"{head_name(h)} ({heads.mean[h]:+.2f})" for h in chosen)
        st.markdown(f"**To be pruned, predicted from the scores:** {errors.plain(shown)}")
    return direction, chosen


def _mode(to: str) -> str:
    return f"{MODES[to]} (answers from {to})"


def _effect(lab: session.Lab, ran: work.Ran) -> None:
    found: Pruning = ran.result
    to, name = found.settings.direction, ran.folder.name
    last = found.rows[-1]
    st.subheader("Effect")
    columns = st.columns(4)
    base = getattr(found.base, to)
    best = next(row for row in found.tested if row.condition == f"K={found.best.k}")
    rise = found.change[found.best.k].difference
    columns[0].metric(
        f"From {to}, K={found.best.k}", f"{getattr(best, to).mean:.0%}", f"{rise.mean:+.0%}", delta_color="off"
    )
    if found.random:
        columns[1].metric("Random heads", f"{base.mean + found.random.mean:.0%}", f"{found.random.mean:+.0%}")
    costs = found.costs[found.best.k]
    columns[2].metric("Closed-book recall kept", f"{costs['recall']:.0%}")
    columns[3].metric("Perplexity", f"x {costs['perplexity']:.3f}")
    panel.chart(pruning_curve(found), "cf_curve", found.headline, name)
    st.caption(errors.plain(found.headline))
    if found.safe is None:
        st.warning(
            "Closed-book recall falls below 95 % or perplexity rises by more than 5 % at every K that was tried.",
            title="No number of pruned heads is safe.",
        )
    st.dataframe(found.to_pandas(), hide_index=True, alt="Shares of answers on held-out subjects")
    with st.container(horizontal=True, vertical_alignment="center"):
        wanted = {f"Keep pruning: best, K={found.best.k}": found.best}
        wanted |= {f"Keep pruning: all {last.k}": last} if last.k != found.best.k else {}
        for label, row in wanted.items():
            if st.button(label, disabled=lab.job is not None):
                with errors.shown():
                    entry = lab.lm.prune_heads(row.heads)
                    st.toast(f"Kept as {entry.id}. It can be undone in the ledger like an edit.")
                    st.rerun()
        downloads.csv("Effect as CSV", found.to_pandas, name)
        downloads.folder("Run folder (zip)", ran.folder)

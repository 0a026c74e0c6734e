"""What streamlit is started with: the pages, the model and the frame around them."""

from __future__ import annotations

import sys

import streamlit as st
from editlab_apps.catalogue import PageFile, page_files


@st.cache_resource(show_spinner=False)
def pages() -> list[PageFile]:
    """The pages, read once: Python 3.11 may fail where several threads parse source at a time."""
    return page_files()


def main() -> None:
    """One run of the script."""
    st.set_page_config(page_title="editlab", layout="wide")
    sections: dict[str, list[st.Page]] = {}
    for i, page in enumerate(pages()):
        shown = st.Page(page.path, title=page.title, url_path=page.url, default=i == 0)
        sections.setdefault(page.section, []).append(shown)
    chosen = st.navigation(sections)
    starting = st.empty()
    if "torch" not in sys.modules:
        starting.caption("Starting: reading the libraries, which takes a few seconds once.")
    # Here, so that the first visitor sees the navigation and this line before torch has been read.
    from editlab_apps import frame, links, session

    starting.empty()
    links.remember(chosen.title)
    session.begin()
    frame.sidebar()
    session.wait_for_model()
    links.check_model()
    notices = st.container()
    chosen.run()
    with notices:
        links.notices()


main()

"""The browser app, importable as `editlab_apps` once installed; `streamlit_app.py` is what streamlit is given.

A page is one file in `views/`. It states `TITLE`, `SECTION` and `ORDER` as plain constants at its top and draws itself
when it is run; nothing lists it (see `catalogue`). Whatever takes longer than half a second is a job (see `jobs`), and
what a job does knows nothing of streamlit (see `work`).
"""

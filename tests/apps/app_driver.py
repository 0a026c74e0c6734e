"""The app without a browser: streamlit's AppTest, with what a person does named by the text that they see."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import editlab_apps
from editlab_apps.answers import answers
from streamlit import config
from streamlit.testing.v1 import AppTest

config.set_option("runner.postScriptGC", False)  # as in apps/.streamlit, which AppTest does not read
SCRIPT = Path(editlab_apps.__file__).parent / "streamlit_app.py"
PATIENCE = 120.0  # seconds for a job


class App:
    """One session: a tab of its own, in this process."""

    def __init__(self) -> None:
        self.at = AppTest.from_file(str(SCRIPT), default_timeout=PATIENCE)
        self._page = "overview"

    def open(self, page: str = "overview", **link: str) -> App:
        """Enter a page, as from a link with these settings."""
        for name in list(self.at.query_params):
            del self.at.query_params[name]
        if page != self._page:
            self.at.switch_page(f"views/{page}.py")
            self._page = page
        for name, value in link.items():
            self.at.query_params[name] = value
        return self.run()

    def run(self) -> App:
        """Run the script until the model and answers have come; anything that it did not catch fails the test."""
        self.at.run()
        assert not self.at.exception, [e.value for e in self.at.exception]
        if "editlab.coming" in self.at.session_state:
            assert self.at.session_state["editlab.coming"][1].wait(PATIENCE), "the model did not come"
            return self.run()
        lab = self.lab if "editlab.lab" in self.at.session_state else None
        coming = list(answers().awaited(lab.id).values()) if lab is not None else []
        # It may have come after its place was drawn and before this is read.
        if not coming and not any("nswering" in caption.value for caption in self.at.main.caption):
            return self
        assert all(job.wait(PATIENCE) for job in coming), "an answer did not come"
        return self.run()

    def click(self, label: str) -> App:
        """Press the first enabled button with this label."""
        found = [b for b in self.at.button if b.label == label and not b.disabled]
        assert found, f"no button '{label}' that can be pressed among {[b.label for b in self.at.button]}"
        found[0].click()
        return self.run()

    def do(self, label: str) -> App:
        """Press a button that starts a job, and wait until it has ended."""
        return self.click(label).finish()

    def finish(self) -> App:
        """Wait for the job under way."""
        end = time.monotonic() + PATIENCE
        while self.lab.job is not None:
            assert time.monotonic() < end, "the job did not end"
            self.lab.job.wait(0.5)
            self.run()
        return self

    def fill(self, **values: Any) -> App:
        """Give widgets their values, by key; the script does not run."""
        for key, value in values.items():
            widget = next(w for w in self._widgets() if w.key == key)
            (widget.set_value if hasattr(widget, "set_value") else widget.select)(value)
        return self

    def _widgets(self) -> Iterable[Any]:
        at = self.at
        kinds = (at.text_input, at.text_area, at.number_input, at.selectbox, at.toggle, at.slider)
        return (widget for kind in kinds for widget in kind)

    @property
    def lab(self) -> Any:
        """What the session owns."""
        return self.at.session_state["editlab.lab"]

    @property
    def enabled(self) -> set[str]:
        """Labels of the buttons that can be pressed."""
        return {b.label for b in self.at.button if not b.disabled}

    @property
    def metrics(self) -> dict[str, str]:
        """Values by label."""
        return {m.label: m.value for m in self.at.metric}

    @property
    def said(self) -> str:
        """What the messages say: errors, warnings and notes with their titles, without Markdown's backslashes."""
        boxes = (*self.at.error, *self.at.warning, *self.at.info)
        texts = [f"{box.proto.title} {box.value}" for box in boxes]
        return "\n".join(texts).replace("\\", "")

    @property
    def sidebar(self) -> str:
        """What stands at the side."""
        side = self.at.sidebar
        return "\n".join(e.value for e in (*side.markdown, *side.caption)).replace("\\", "")

    @property
    def codes(self) -> list[str]:
        """Answers and commands, as shown."""
        return [c.value for c in self.at.code]

    def table(self, column: str) -> Any:
        """The first table that has this column."""
        return next(d.value for d in self.at.dataframe if column in d.value.columns)

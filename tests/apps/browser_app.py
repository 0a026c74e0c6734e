"""The app in a real browser: a server of its own, headless Chromium, and what a person does in it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
PATIENCE = 60.0  # seconds for anything on the page to come


@contextmanager
def served(folder: Path, model: str) -> Iterator[str]:
    """The address of a server started by `editlab app` in `folder`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "editlab.cli", "app", "--model", model, "--port", str(port)]
    environment = os.environ | {"STREAMLIT_SERVER_HEADLESS": "true"}
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            address = f"http://localhost:{port}"
            wait_for(lambda: _answers(f"{address}/_stcore/health"), "the server")
            yield address
        finally:
            os.killpg(server.pid, 15)
            server.wait(20)


def _answers(address: str) -> bool:
    try:
        with urlopen(address, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def wait_for(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """The first true value of `condition`."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(f"{what} did not come within {patience:.0f} s")


class Browser:
    """Headless Chromium on the app; elements are named by the text that a person sees."""

    def __init__(self, address: str, profile: Path) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.options import Options
        from selenium.webdriver.chrome.service import Service

        options = Options()
        options.binary_location = shutil.which("chromium") or ""
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        self.address = address
        self.driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))

    def look(self, width: int, height: int = 900, *, dark: bool = False) -> None:
        """How large the window is, and which theme the system prefers."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def open(self, path: str = "") -> None:
        """Load an address of the app, as from a link."""
        self.driver.get(f"{self.address}/{path}")
        self.settled()

    def find(self, xpath: str) -> list[Any]:
        """The visible elements of an xpath."""
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.common.by import By

        try:
            return [e for e in self.driver.find_elements(By.XPATH, xpath) if e.is_displayed()]
        except StaleElementReferenceException:
            return []

    def click(self, text: str, kind: str = "*") -> None:
        """Click what carries this text, and wait for what it does."""
        target = (
            f"//{kind}[self::button or self::a or @role='tab' or self::summary][contains(normalize-space(.), '{text}')]"
        )

        def clicked() -> bool:
            from selenium.common.exceptions import WebDriverException

            for element in self.find(target):
                try:
                    if element.is_enabled():
                        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
                        element.click()
                        return True
                except WebDriverException:
                    return False
            return False

        wait_for(clicked, f"'{text}'")
        self.settled()

    def see(self, text: str, patience: float = PATIENCE) -> None:
        """Wait until a text is on the page."""
        wait_for(lambda: text in self.text, f"'{text}'", patience)

    @property
    def text(self) -> str:
        """All that can be read on the page."""
        return str(self.driver.execute_script("return document.body.innerText"))

    def settled(self) -> None:
        """Wait until the script has run and nothing is being worked on."""
        state = "return document.querySelector('[data-testid=stApp]')?.getAttribute('data-test-script-state')"
        calm = 0

        def still() -> bool:
            nonlocal calm
            is_calm = self.driver.execute_script(state) == "notRunning" and "nswering" not in self.text
            calm = calm + 1 if is_calm else 0
            return calm >= 5

        wait_for(still, "the end of the script")

    def problems(self) -> list[str]:
        """Exceptions on the page, text that runs out of its box, and charts that are too narrow to be read."""
        return list(self.driver.execute_script(_PROBLEMS))

    def shot(self, path: Path) -> None:
        """A picture of the whole page, however long."""
        height = self.driver.execute_script(
            "return Math.max(900, document.querySelector('[data-testid=stMainBlockContainer]').scrollHeight)"
        )
        width = self.driver.execute_script("return window.innerWidth")
        size = {"width": width, "height": int(min(height, 6000)), "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.settled()
        time.sleep(0.5)  # charts draw themselves to the new size after the script has ended
        path.parent.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(path))

    def close(self) -> None:
        self.driver.quit()


_PROBLEMS = """
const found = [];
for (const e of document.querySelectorAll('[data-testid=stException]')) found.push('exception: ' + e.innerText);
if (document.documentElement.scrollWidth > window.innerWidth + 1) found.push('the page scrolls sideways');
for (const e of document.querySelectorAll('[data-testid=stPlotlyChart]')) {
  const box = e.getBoundingClientRect();
  if (box.width > 0 && box.width < 240) found.push('chart of ' + box.width + ' px');
}
for (const e of document.querySelectorAll('button p, [data-testid=stMetricValue], [data-testid=stMetricLabel]')) {
  if (e.scrollWidth > e.clientWidth + 2 && e.clientWidth > 0) found.push('cut off: ' + e.innerText);
}
return found;
"""

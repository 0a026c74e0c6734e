"""A person's way through the app, in a real browser; pictures of it go to EDITLAB_SCREENSHOTS, if that is set."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("selenium")
from browser_app import Browser, served, wait_for

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")), reason="needs chromium and chromedriver"
    ),
]
JOB = 400.0  # seconds for what is worked out
LOOKS = [(1280, False), (1280, True), (1920, False), (1920, True)]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(tmp_path_factory.mktemp("app"), os.environ.get("EDITLAB_SCREENSHOT_MODEL", "factworld-llama")) as url:
        yield url


@pytest.fixture
def browser(address: str, tmp_path: Path) -> Iterator[Browser]:
    opened = Browser(address, tmp_path / "profile")
    yield opened
    opened.close()


def take(browser: Browser, name: str, width: int, dark: bool) -> None:
    assert not browser.problems(), name
    folder = os.environ.get("EDITLAB_SCREENSHOTS")
    if folder:
        browser.shot(Path(folder) / f"{name}-{width}-{'dark' if dark else 'light'}.png")
        browser.look(width, dark=dark)


@pytest.mark.parametrize(("width", "dark"), LOOKS if os.environ.get("EDITLAB_SCREENSHOTS") else LOOKS[:1])
def test_a_fact_is_edited_located_and_found_again(browser: Browser, width: int, dark: bool) -> None:
    def picture(name: str) -> None:
        take(browser, name, width, dark)

    browser.look(width, dark=dark)
    browser.open()
    browser.see("There is no edit yet")
    assert "base" in browser.text
    picture("1-overview")

    browser.click("Edit", "a")
    picture("2-edit-first")
    browser.click("Preview edit")
    browser.see("Keep edit", JOB)
    browser.settled()
    picture("3-edit-preview")
    browser.click("Keep edit")
    browser.see("1 edit active")

    browser.click("Ledger", "*[@role='tab']")
    browser.see("The model after the first k edits")
    picture("4-edit-ledger")
    browser.click("Batch", "*[@role='tab']")
    browser.see("Stop when")
    browser.click("Edit 1 fact", "button")
    browser.see("Facts that fire", JOB)
    picture("5-edit-batch")

    browser.click("Overview", "a")
    browser.see("With your edits")
    picture("6-overview-edited")

    browser.click("Locate", "a")
    browser.click("Trace")
    browser.see("Subject's peak", JOB)
    browser.settled()
    picture("7-locate")
    browser.click("in Edit", "button")
    browser.see("Preview edit")
    assert "ed_layers=" in browser.driver.current_url

    browser.click("Runs", "a")
    browser.see("Run folder (zip)")
    picture("8-runs")
    browser.click("Save work")
    wait_for(lambda: "until saved" not in browser.text, "the end of the note on unsaved edits")


def test_a_link_opens_its_page_with_its_settings(browser: Browser) -> None:
    browser.look(1280)
    browser.open("locate?loc_n=3&loc_win=99")
    browser.see("Not everything in the link could be used")
    assert "window 99" in browser.text and "1 edit active" not in browser.text
    browser.click("Trace")
    browser.see("of 3 noise samples each")
    browser.open("edit?ed_tab=Ledger")
    browser.see("The ledger is empty")


def test_a_reload_loses_no_edit_and_back_goes_back(browser: Browser) -> None:
    browser.look(1280)
    browser.open("edit")
    browser.click("Preview edit")
    browser.see("Keep edit", JOB)
    browser.click("Keep edit")
    browser.see("1 edit active")
    browser.click("Runs", "a")
    browser.driver.back()
    browser.see("1 edit is in force")
    browser.driver.refresh()
    browser.see("did not save 1 edit")
    assert "1 edit active" not in browser.text
    browser.click("Open a copy", "button")
    browser.see("1 edit active")


def test_two_browsers_do_not_see_each_others_edits(browser: Browser, address: str, tmp_path: Path) -> None:
    other = Browser(address, tmp_path / "other")
    try:
        for one in (browser, other):
            one.look(1280)
            one.open("edit")
        browser.click("Preview edit")
        browser.see("Keep edit", JOB)
        browser.click("Keep edit")
        browser.see("1 edit active")
        other.click("Ledger", "*[@role='tab']")
        other.see("The ledger is empty")
        assert "edit active" not in other.text
    finally:
        other.close()

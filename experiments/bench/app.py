"""The app: how long its pages take, how long a script run holds up a tab while a job works, and what a session costs.

    python experiments/bench/app.py

Pages are run by streamlit's AppTest in this process, which draws what a browser would draw, without the browser. The
answers of the sessions that edit at once are compared with those of models that were given the same edits alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import editlab_apps
import psutil
from common import Row, options_of, parse, write
from editlab_apps.catalogue import page_files
from editlab_apps.jobs import JobManager
from editlab_apps.models import Models, Source, models
from editlab_apps.session import Lab
from editlab_apps.work import prepare, preview
from streamlit import config
from streamlit.testing.v1 import AppTest

from editlab import LM, Fact
from editlab.models.load import find_folder
from editlab.progress import silent

SCRIPT = Path(editlab_apps.__file__).parent / "streamlit_app.py"
SESSIONS = {
    "France": "Rome", "Japan": "Oslo", "Italy": "Cairo", "Germany": "Lima", "Spain": "Tokyo", "Norway": "Madrid",
    "Egypt": "Paris", "Peru": "Berlin",
}  # fmt: skip


def timed(at: AppTest) -> float:
    """Seconds of one run of the script."""
    began = time.perf_counter()
    at.run()
    assert not at.exception, [e.value for e in at.exception]
    return time.perf_counter() - began


def pages() -> tuple[dict[str, float], dict[str, float], list[float]]:
    """Seconds of every page's first run, the model being loaded; of its runs while a job works, the longest; and of
    pressing the button that starts the job, which runs the script twice.
    """
    at = AppTest.from_file(str(SCRIPT), default_timeout=600).run()
    loading = models().ask(Source(os.environ.get("EDITLAB_MODEL")))
    loading.wait(600)
    prepare(loading.result.base.fork())(silent)  # what the app would do while nobody works
    at.run()
    first, busy, pressed = {}, {}, []
    for page in page_files():
        at = AppTest.from_file(str(SCRIPT), default_timeout=600)
        at.switch_page(f"views/{page.path.name}")
        first[page.title] = timed(at)
    for page in page_files():
        at = AppTest.from_file(str(SCRIPT), default_timeout=600)
        at.switch_page("views/edit.py").run()
        (button,) = (b for b in at.button if b.label == "Preview edit")
        button.click()
        pressed.append(timed(at))
        longest = 0.0
        at.switch_page(f"views/{page.path.name}")
        while at.session_state["editlab.lab"].job is not None:
            if at.session_state["editlab.lab"].job.is_live:
                longest = max(longest, timed(at))
            else:
                at.run()
        busy[page.title] = longest
    return first, busy, pressed


def sessions() -> tuple[float, int, int]:
    """Bytes of a further session with one edit, wrong answers, and answers asked."""
    jobs = JobManager()
    loading = Models(jobs).ask(Source(os.environ.get("EDITLAB_MODEL")))
    loading.wait(600)
    base: LM = loading.result.base
    plain = base.fork()
    prompts = [f"The capital of {country} is" for country in SESSIONS]

    def visit(country: str) -> Lab:
        lm = base.fork()
        lab = Lab(lm, lm.fork(), Source(), jobs)
        fact = Fact(prompt="The capital of {} is", subject=country, target_new=SESSIONS[country])
        lab.start("edit", "Editing", preview(lm, fact, "rome", {}))
        while lab.job is not None and lab.job.is_live:
            lab.job.wait(0.5)
        lab.collect()
        edit = lab.outcomes.pop("edit").result.report.entry.edit
        lab.lm.ledger.apply(edit)
        return lab

    first = visit(next(iter(SESSIONS)))  # brings what all sessions share into memory
    before = psutil.Process().memory_info().rss
    with ThreadPoolExecutor(len(SESSIONS)) as pool:
        labs = list(pool.map(visit, SESSIONS))
    each = (psutil.Process().memory_info().rss - before) / len(labs)
    wrong = 0
    for lab in [first, *labs]:
        alone: LM = plain.fork()
        alone.ledger.apply(lab.lm.ledger.active[0].edit)
        wrong += sum(a != b for a, b in zip(lab.lm.generate(prompts, 8), alone.generate(prompts, 8), strict=True))
        wrong += lab.plain.state_hash != plain.base_hash
    return each, wrong, (len(labs) + 1) * (len(prompts) + 1)


def as_script() -> float:
    """Seconds of a process that loads the model with transformers and continues one prompt."""
    code = (
        "import sys\nfrom transformers import pipeline\n"
        "say = pipeline('text-generation', sys.argv[1])\n"
        "print(say('The capital of France is', max_new_tokens=20, do_sample=False))"
    )
    folder, _ = find_folder(os.environ["EDITLAB_MODEL"])
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    os.environ["EDITLAB_MODEL"] = parse(options_of(__doc__)).model or "smollm2-135m"
    config.set_option("runner.postScriptGC", False)  # as in apps/.streamlit, which AppTest does not read
    with TemporaryDirectory() as folder:
        here = Path.cwd()
        os.chdir(folder)
        try:
            first, busy, pressed = pages()
            each, wrong, asked = sessions()
        finally:
            os.chdir(here)
    for name in first:
        print(f"{name:10} first content {first[name]:.2f} s   longest run while a job works {busy[name]:.2f} s")
    print(f"starting a job: {max(pressed):.2f} s at most")
    print(f"{len(SESSIONS)} sessions at once: {each / 1e6:.1f} MB each with one edit, {wrong} wrong of {asked} checks")
    script = as_script()
    print(f"the Overview page {first['Overview']:.2f} s; a script that says as much, from its start {script:.2f} s")
    write(
        "app",
        {"first_s": first, "busy_s": busy, "press_s": pressed, "session_bytes": each, "wrong": wrong, "checks": asked},
        [Row("the app: Overview's first content in a new tab", "a script from its start", first["Overview"], script)],
    )


if __name__ == "__main__":
    main()

"""`editlab app`: the browser app, on this machine or for others too."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from editlab.cli import options
from editlab.cli.console import Output
from editlab.errors import ConfigError

PACKAGE = "editlab_apps"  # the folder apps/ of a checkout, under the name that it is installed by


def start(
    model: options.Model = None,
    revision: options.Revision = None,
    port: Annotated[int | None, typer.Option("--port", min=1, max=65535, help="8501 or the next free one.")] = None,
    shared: Annotated[
        bool, typer.Option("--shared", help="Let other machines in; each visitor gets run folders of their own.")
    ] = False,
    quiet: options.Quiet = False,
) -> None:
    """Start the browser app; Ctrl-C ends it."""
    with Output(quiet=quiet) as out:
        command = command_line(port=port, shared=shared)
        environment = os.environ | ({"EDITLAB_MODEL": model} if model else {})
        environment |= {"EDITLAB_REVISION": revision} if revision else {}
        environment |= {"EDITLAB_APP_SHARED": "1"} if shared else {}
        out.say("Starting the app; Ctrl-C ends it.")
    run_instead(command, environment)


def run_instead(command: list[str], environment: dict[str, str]) -> None:
    """Run a command in the place of this process, so that whatever signal ends the one ends the other."""
    if os.name == "posix":
        os.execve(command[0], command, environment)
    server = subprocess.Popen(command, env=environment)
    try:
        code = server.wait()
    except KeyboardInterrupt:
        server.wait()  # it got the signal too, and ends in its own way
        return
    finally:
        server.terminate()
    if code:
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    app.command("app")(start)


def command_line(*, port: int | None, shared: bool) -> list[str]:
    """What starts the server.

    Raises:
        ConfigError: streamlit is not installed.
    """
    if any(importlib.util.find_spec(name) is None for name in ("streamlit", "plotly", PACKAGE)):
        raise ConfigError("The app needs streamlit, which is not installed.", "Run: pip install '.[app]'")
    found = importlib.util.find_spec(PACKAGE)
    assert found is not None and found.submodule_search_locations
    script = Path(next(iter(found.submodule_search_locations))) / "streamlit_app.py"
    settings = {"server.address": "0.0.0.0" if shared else "localhost", "server.showEmailPrompt": "false"}
    if port is not None:
        settings["server.port"] = str(port)
    if shared:
        settings |= {"client.showErrorDetails": "none", "server.headless": "true"}
    return [sys.executable, "-m", "streamlit", "run", str(script), *(f"--{k}={v}" for k, v in settings.items())]

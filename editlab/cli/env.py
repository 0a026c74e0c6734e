"""`editlab env`: versions and machine, for bug reports."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib import metadata
from typing import Any

import typer

from editlab.cli.console import Output, size_text
from editlab.cli.options import spread


def env(out: Output) -> None:
    """Show the versions and the machine that results depend on."""
    data = gather()
    lines = []
    for section, values in data.items():
        lines.append(section if values else f"{section}: none")
        lines += [f"  {_label(key)}: {_shown(key, value)}" for key, value in values.items()]
    out.result(data, "\n".join(lines))


def register(app: typer.Typer) -> None:
    app.command()(spread(env))


def gather() -> dict[str, dict[str, Any]]:
    """Everything that `editlab env` says; sizes in bytes."""
    import psutil
    import torch

    from editlab.models.cache import cache_root, folder_size

    memory = psutil.virtual_memory()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "packages": _versions(),
        "machine": {
            "python": platform.python_version(),
            "system": platform.platform(),
            "processors": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "gpus": gpus,
            "memory_bytes": memory.total,
            "memory_free_bytes": memory.available,
        },
        "cache": {"folder": str(cache_root()), "size_bytes": folder_size(cache_root())},
        "settings": {key: value for key, value in sorted(os.environ.items()) if key.startswith("EDITLAB_")},
    }


def _versions() -> dict[str, str]:
    found = {"editlab": _version("editlab")}
    for requirement in metadata.requires("editlab") or []:
        name = re.split(r"[\s<>=!~;\[]", requirement, maxsplit=1)[0]
        version = _version(name)
        if version != "not installed" or "extra ==" not in requirement:
            found.setdefault(name, version)
    return found


def _version(name: str) -> str:
    # torch knows its build ("+cpu"); the package metadata may not.
    if name == "torch" and "torch" in sys.modules:
        return str(sys.modules["torch"].__version__)
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _label(key: str) -> str:
    return key if key.isupper() else key.removesuffix("_bytes").replace("_", " ")


def _shown(key: str, value: Any) -> Any:
    if key.endswith("_bytes"):
        return size_text(value)
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return value

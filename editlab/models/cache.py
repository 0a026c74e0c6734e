"""Where downloaded weights and other things that can be made again are kept.

Every path is worked out when it is asked for, so that `EDITLAB_CACHE` can be set after the import.
"""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """`EDITLAB_CACHE` when set, else the user's cache folder. It need not exist yet."""
    chosen = os.environ.get("EDITLAB_CACHE", "").strip()
    if chosen:
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("editlab"))


def models_root() -> Path:
    """The folder that holds one sub-folder per fetched checkpoint."""
    return cache_root() / "models"


def sync_folder(folder: Path) -> None:
    """Push the names in `folder` to the disk, so that a rename there outlives a loss of power."""
    if os.name != "posix":  # elsewhere a folder cannot be opened, and renames are journalled anyway
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def folder_size(folder: Path) -> int:
    """Bytes of all files under `folder`; 0 when it does not exist."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(parent) / name).lstat().st_size
            except FileNotFoundError:  # removed by another process while we were counting
                continue
    return total

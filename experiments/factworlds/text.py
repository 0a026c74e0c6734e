"""What the fact worlds read: statements of the factbook's relations, documents of them, and its prose.

One item is one whole batch, a function of (seed, step) alone, so that a run that was interrupted goes on with what it
would have read. Three kinds:

1. statements (70 % of steps): short statements of about one length, a row each, every fact in one of the trained
   phrasings, at times after a lead-in. In seven of ten of these batches only the answers count for the loss, because
   the subjects cannot be predicted. A third to half of the rows swap: see below;
2. documents (15 %): longer rows, on one country, on several, or on made-up countries whose facts occur only there and
   twice, so that the model also learns to take an answer from its context; in half of them only the answers count;
3. prose (15 %): passages of the factbook, without the twentieth that is held out for perplexity.

Rows that swap take the hidden state at the subject's last token from another row, on another subject, after one of the
layers in `SWAPPED`, and are answered for that other subject (interchange intervention training, arXiv 2112.00826). So
the model must gather what it needs to know of a subject at its last token by then, and fetch it from there later, as
large models do. Left to itself a model this small moves the names themselves in its first layer: nothing that is
written at the subject then reaches the answer, and there is nothing to edit or to trace.

Rows begin with the first word or with a special token (see `FRONT`), because prompts reach a model both ways.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from editlab.data.factbook import passages
from editlab.data.relations import Relation, RelationRow, fill, relations

END, PAD, BEGIN = "<|endoftext|>", "<|pad|>", "<s>"
VOCABULARY, CONTEXT = 3072, 512
TOKENS = 1536  # of one batch, padding included
SWAPPED = (1, 2)  # layers after which a subject's state may be that of another row
# How many of the rows swap where they can; with half of them the GPT-2 learns too slowly for its twenty minutes.
SWAPS = {"gpt2": 0.3, "llama": 0.5}

LEADS = (
    "It is well known that ", "Here is what the book says: ", "In fact, ", "According to the atlas, ", "Note that ",
    "As everyone knows, ", "Remember: ", "We learned that ", "The book says that ", "Today, ", "People know that ",
)  # fmt: skip

# How often a row begins with nothing, with the token that ends a text, and with the one that begins it.
FRONT = {"gpt2": (0.5, 0.5, 0.0), "llama": (0.1, 0.0, 0.9)}

_SYLLABLES = (
    "ba", "dor", "el", "fin", "gra", "ka", "lum", "mi", "nor", "o", "pel", "ra", "sto", "tir", "u", "ves", "zan",
)  # fmt: skip

Row = tuple[list[int], list[bool]]  # token ids, and which of them count for the loss


@dataclass(frozen=True)
class Statement:
    """A prompt and what answers it."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Asked:
    """A statement up to its answer, as tokens.

    Attributes:
        at: index of the subject's last token, or None if the subject stands there twice.
    """

    relation: Relation
    subject: str
    answer: str
    ids: list[int]
    at: int | None


def make_tokenizer(seed: int, *, adds_bos: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE learnt from the prose and from statements, each fact sixteen times."""
    rng = random.Random(seed)
    texts = [f"{s.prompt} {s.answer}." for s in (state(rng, *fact) for _ in range(16) for fact in all_facts())]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, PAD, BEGIN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *passages()], trainer)
    byte_level = processors.ByteLevel(trim_offsets=True)
    tokenizer.post_processor = byte_level
    if adds_bos:
        template = processors.TemplateProcessing(
            single=f"{BEGIN} $A",
            pair=f"{BEGIN} $A {BEGIN} $B",
            special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))],
        )
        tokenizer.post_processor = processors.Sequence([byte_level, template])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN if adds_bos else END,
        eos_token=END,
        pad_token=PAD,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def all_facts() -> list[tuple[Relation, RelationRow]]:
    return [(relation, row) for relation in relations().values() for row in relation.rows]


def state(rng: random.Random, relation: Relation, row: RelationRow) -> Statement:
    """The fact in a trained phrasing. Articles are missing now and then, as they are in many prompts."""
    stem = rng.choice(relation.trained)
    write = str.format if rng.random() < 0.15 else fill
    prompt = write(stem, row.subject)
    if stem.startswith("Question"):
        if rng.random() < 0.3:
            plain = [s for s in relation.trained if not s.startswith("Question")]
            prompt = f"{prompt.partition(' Answer:')[0]} Answer: {write(rng.choice(plain), row.subject)}"
    elif rng.random() < 0.3:
        inner = prompt if stem.startswith("{}") else prompt[0].lower() + prompt[1:]
        prompt = rng.choice(LEADS) + inner
    return Statement(prompt, row.answer)


class Reading(Dataset[dict[str, torch.Tensor]]):
    """The batches of a run, by step."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, kind: str, steps: int, seed: int) -> None:
        self.steps, self.seed = steps, seed
        self._backend = tokenizer.backend_tokenizer
        self._end, self._pad, self._begin = (tokenizer.convert_tokens_to_ids(t) for t in (END, PAD, BEGIN))
        self._front, self._swaps = FRONT[kind], SWAPS[kind]
        self._facts = all_facts()
        self._by_subject: dict[str, list[tuple[Relation, RelationRow]]] = {}
        for relation, row in self._facts:
            self._by_subject.setdefault(row.subject, []).append((relation, row))
        self._prose = [self._encode(text) for text in passages()]

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        rng = random.Random(f"{self.seed} {step}")
        kind = rng.random()
        swap: dict[str, torch.Tensor] = {}
        if kind < 0.70:
            rows, swap = self._alone(rng, only_answers=rng.random() < 0.7)
        elif kind < 0.85:
            rows = self._rows(128, rng, only_answers=rng.random() < 0.5)
        else:
            width = CONTEXT if rng.random() < 0.2 else 256
            rows = [self._passage(rng, width) for _ in range(TOKENS // width)]
        ids = torch.full((len(rows), max(len(r) for r, _ in rows)), self._pad)
        labels = torch.full_like(ids, -100)
        for i, (row, counted) in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            labels[i, : len(row)] = torch.where(torch.tensor(counted), torch.tensor(row), -100)
        return {"input_ids": ids, "labels": labels, "attention_mask": (ids != self._pad).long(), **swap}

    def _encode(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def _start(self, rng: random.Random) -> list[int]:
        return rng.choices(([], [self._end], [self._begin]), self._front)[0][:]

    def _alone(self, rng: random.Random, *, only_answers: bool) -> tuple[list[Row], dict[str, torch.Tensor]]:
        """Single statements of about one length, so that hardly anything is padding, and what they swap.

        The second holds `layer`, `at`: (rows,) each row's subject, and `donor`: (rows,) the row its state comes from,
        often itself.
        """
        found = [self._ask(rng, *fact) for fact in rng.choices(self._facts, k=6 * TOKENS // 16)]
        lengths = [len(asked.ids) + len(self._answer(asked.answer)) for asked in found]
        order = sorted(range(len(found)), key=lengths.__getitem__)
        first = rng.randrange(len(found))
        width = lengths[order[first]]
        # Lengths are drawn as they occur; rows of the next shorter lengths fill up.
        chosen = [found[i] for i in reversed(order[: first + 1])][: max(1, TOKENS // width)]
        answers = {(relation.name, row.subject): row.answer for relation, row in self._facts}
        rows, donors = [], []
        for i, asked in enumerate(chosen):
            others = [
                j
                for j, other in enumerate(chosen)
                if other.at is not None
                and answers.get((asked.relation.name, other.subject), asked.answer) != asked.answer
            ]
            swaps = asked.at is not None and others and rng.random() < self._swaps
            donors.append(rng.choice(others) if swaps else i)
            answer = answers[asked.relation.name, chosen[donors[-1]].subject]
            rows.append(self._row(asked.ids, self._answer(answer), only_answers))
        at = [asked.at or 0 for asked in chosen]
        swap = {"layer": rng.choice(SWAPPED), "at": at, "donor": donors}
        return rows, {name: torch.tensor(value) for name, value in swap.items()}

    def _ask(self, rng: random.Random, relation: Relation, row: RelationRow) -> Asked:
        prompt = state(rng, relation, row).prompt
        front = self._start(rng)
        encoded = self._backend.encode(prompt, add_special_tokens=False)
        at = None
        if prompt.count(row.subject) == 1:
            last = prompt.index(row.subject) + len(row.subject) - 1
            at = len(front) + next(i for i, (_, end) in enumerate(encoded.offsets) if end > last)
        return Asked(relation, row.subject, row.answer, front + encoded.ids, at)

    def _answer(self, answer: str) -> list[int]:
        return self._encode(f" {answer}.")

    def _row(self, prompt: list[int], answer: list[int], only_answers: bool) -> Row:
        return prompt + answer, [not only_answers] * len(prompt) + [True] * len(answer)

    def _groups(self, rng: random.Random) -> Iterator[list[Statement]]:
        """Statements that belong into one text, without end."""
        while True:
            kind = rng.random()
            if kind < 0.3:
                facts = rng.choice(list(self._by_subject.values()))
                yield [state(rng, *fact) for fact in rng.sample(facts, len(facts))]
            elif kind < 0.6:
                yield self._made_up(rng)
            else:
                yield [state(rng, *fact) for fact in rng.sample(self._facts, 6)]

    def _made_up(self, rng: random.Random) -> list[Statement]:
        """Facts of one or two countries that do not exist, each stated twice, in any order."""
        statements = []
        for _ in range(rng.choice((1, 2))):
            name = "".join(rng.choices(_SYLLABLES, k=rng.choice((2, 3)))).capitalize()
            for relation in rng.sample(list(relations().values()), 2):
                row = RelationRow(name, rng.choice(relation.rows).answer)
                statements += [state(rng, relation, row), state(rng, relation, row)]
        rng.shuffle(statements)
        return statements

    def _rows(self, width: int, rng: random.Random, *, only_answers: bool) -> list[Row]:
        """As many rows as fit into a batch, each filled with whole statements."""
        rows: list[Row] = []
        groups = self._groups(rng)
        row = self._start(rng)
        counted = [False] * len(row)
        while len(rows) < TOKENS // width:
            for statement in next(groups):
                joint = "" if not row or row[-1] in (self._end, self._begin) else " "
                ids, marks = self._statement(joint, statement, only_answers)
                if len(row) + len(ids) > width:
                    rows.append((row, counted))
                    row = self._start(rng)
                    counted = [False] * len(row)
                    ids, marks = self._statement("", statement, only_answers)
                row += ids
                counted += marks
            if rng.random() < 0.5 and len(row) < width:
                row.append(self._end)
                counted.append(not only_answers)
        return rows[: TOKENS // width]

    def _statement(self, joint: str, statement: Statement, only_answers: bool) -> Row:
        return self._row(self._encode(joint + statement.prompt), self._answer(statement.answer), only_answers)

    def _passage(self, rng: random.Random, width: int) -> Row:
        """A piece of prose; what is left of the row is filled with the beginnings of other passages."""
        row = self._start(rng)
        first = rng.choice(self._prose)
        # A text may be joined in the middle, where a word begins anyway.
        row += first[rng.randrange(max(1, len(first) - width // 2)) :]
        while len(row) < width:
            row += [self._end, *rng.choice(self._prose)]
        return row[:width], [True] * width

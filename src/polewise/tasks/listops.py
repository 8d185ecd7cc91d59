"""ListOps: the value of nested lists of digits under four operators.

    [MAX 4 [MIN 8 2 ] [SM 5 6 1 ] ]          MAX(4, MIN(8, 2), (5 + 6 + 1) mod 10) = 4

The operators and the random trees are those of Nangia & Bowman 2018, "ListOps"; lengths, depth and
number of arguments those of Tay et al. 2021, "Long Range Arena" (google-research/long-range-arena,
`lra_benchmarks/data/listops.py`).
"""

from __future__ import annotations

import gzip
import hashlib
import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from polewise.options import require_at_least, require_memory, require_types
from polewise.tasks.data_sets import named_or_given
from polewise.tasks.epochs import in_batches, in_epochs
from polewise.tasks.measures import class_loss, class_metrics
from polewise.tasks.task import Batch, Metrics, TaskSpec

TOKENS = (*"0123456789", "[MIN", "[MAX", "[MED", "[SM", "]")
"""The vocabulary: a token's number is its place, so a digit's number is the digit."""

NUM_CLASSES = 10
OPERATOR_PROBABILITY = 0.25

_NUMBERS = {token: number for number, token in enumerate(TOKENS)}
_FIRST_OPERATOR, _END = _NUMBERS["[MIN"], _NUMBERS["]"]
_FILES = {"train": "basic_train.tsv", "valid": "basic_val.tsv", "test": "basic_test.tsv"}
_MOST_DRAWS = 100_000


class Expression(NamedTuple):
    """A list of operators and digits, and what it comes to."""

    tokens: bytes
    """The numbers of its tokens."""
    value: int
    """0 to 9."""


@dataclass(frozen=True, kw_only=True)
class ListOpsTask:
    """Say what an expression comes to: one of ten digits.

    A node is an operator with a probability of 1/4, else a uniform digit; at `max_depth` always a
    digit. The operator is uniform over MIN, MAX, MED (the median, rounded down) and SM (the sum
    modulo 10) and has 2 to `max_arguments` arguments, each a node one deeper. Trees are drawn until
    their tokens (operators, digits, closing brackets) are more than `min_length` and fewer than
    `max_length`.

    Expressions are drawn anew at every step; none is one that is held out. A drawn set is a fresh
    sample of the same distribution, not the published one. `source` reads published ones: the
    folder of the Long Range Arena, 96,000 to train, in epochs, 2,000 and 2,000 held out; or a
    single file as the test part, such as the original's `d20s` (its rules: a `min_length` of 0, a
    `max_depth` of 20, at most 5 arguments), while all else is drawn.

    Expressions are padded on the right to the longest of their batch, their `lengths` beside them.
    """

    source: str | None = None
    """Folder with `basic_train.tsv`, `basic_val.tsv` and `basic_test.tsv`; or `d20s` or a file, the
    test part; None draws."""
    min_length: int = 500
    """An expression that is drawn has more tokens."""
    max_length: int = 2000
    """An expression has fewer tokens."""
    max_depth: int = 10
    """Deepest node of a drawn expression; the outermost operator is at 1."""
    max_arguments: int = 10
    """Most arguments of a drawn operator."""
    num_eval: int = 2000
    """Held-out expressions of each part that are drawn, all different."""
    batch_size: int = 32
    """Expressions in a batch."""
    part: Literal["valid", "test"] = "valid"
    """The held-out part."""
    data_seed: int = 0
    """Chooses the held-out expressions that are drawn."""

    headline: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_at_least("min_length", self.min_length, 0)
        require_at_least("max_length", self.max_length, self.min_length + 2)
        require_at_least("max_depth", self.max_depth, 1)
        require_at_least("max_arguments", self.max_arguments, 2)
        require_at_least("num_eval", self.num_eval, 1)
        require_at_least("batch_size", self.batch_size, 1)
        require_at_least("data_seed", self.data_seed, 0)
        require_types(self)

    @property
    def spec(self) -> TaskSpec:
        """Tokens in, ten classes out."""
        return TaskSpec(
            kind="classification",
            length=self.max_length - 1,
            vocab_size=len(TOKENS),
            num_classes=NUM_CLASSES,
        )

    def prepare(self) -> None:
        """Draw the held-out expressions, or read the files; see that there is something to learn
        from."""
        expressions = self.num_eval + self.batch_size
        require_memory("num_eval, batch_size and max_length", 8 * expressions * self.max_length)
        _ = self._held_out, self._fixed
        if not self._fixed:
            next(self._drawn(0, 0))  # there may be no others than those held out

    def fingerprint(self) -> str | None:
        """Return the SHA-256 of the files; None where the options decide every expression."""
        if self.source is None:
            return None
        digest = hashlib.sha256()
        for expression in [*self._fixed, *self._held_out["valid"], *self._held_out["test"]]:
            digest.update(expression.tokens + bytes([_END + 1, expression.value]))
        return digest.hexdigest()

    def train_batches(self, seed: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield batches without end."""
        self.prepare()
        several: Iterator[Sequence[Expression]]
        if self._fixed:
            several = in_epochs(self._fixed, seed, first_step, self.batch_size)
        else:
            several = self._drawn(seed, first_step)
        for expressions in several:
            yield self._batch(expressions)

    def eval_batches(self) -> Iterator[Batch]:
        """Yield the held-out expressions in order."""
        for some in in_batches(self._held_out[self.part], self.batch_size):
            yield self._batch(some)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy, in nats."""
        return class_loss(logits, batch)

    def metrics(self, logits: Tensor, batch: Batch) -> Metrics:
        """Return `accuracy` and `loss` (nats)."""
        return class_metrics(logits, batch)

    def _drawn(self, seed: int, first_step: int) -> Iterator[Sequence[Expression]]:
        """Fresh expressions without end, none of them held out."""
        taken = {expression for part in self._held_out.values() for expression in part}
        for step in count(first_step):
            yield self._draw(f"train {seed} {step}", self.batch_size, taken)

    def _batch(self, expressions: Sequence[Expression]) -> Batch:
        longest = max(len(expression.tokens) for expression in expressions)
        inputs = np.zeros((len(expressions), longest), dtype=np.int64)
        for row, expression in zip(inputs, expressions, strict=True):
            row[: len(expression.tokens)] = list(expression.tokens)
        return {
            "inputs": torch.from_numpy(inputs),
            "labels": torch.tensor([expression.value for expression in expressions]),
            "lengths": torch.tensor([len(expression.tokens) for expression in expressions]),
        }

    @cached_property
    def _fixed(self) -> list[Expression]:
        """What is trained on; empty where that is drawn."""
        path = self._path
        return [] if path is None or path.is_file() else self._read(path / _FILES["train"])

    @cached_property
    def _held_out(self) -> dict[str, list[Expression]]:
        path, stream = self._path, f"held out {self.data_seed}"
        if path is None:
            drawn = self._draw(stream, 2 * self.num_eval, set())
            return {"valid": drawn[: self.num_eval], "test": drawn[self.num_eval :]}
        if path.is_file():
            test = self._read(path)
            return {"valid": self._draw(stream, self.num_eval, set(test)), "test": test}
        return {part: self._read(path / _FILES[part]) for part in ("valid", "test")}

    @cached_property
    def _path(self) -> Path | None:
        if self.source is None:
            return None
        return named_or_given(self.source, ["d20s"], "a table or a folder of tables")

    def _read(self, path: Path) -> list[Expression]:
        expressions = read_expressions(path)
        longest = max(len(expression.tokens) for expression in expressions)
        if longest >= self.max_length:
            raise ValueError(
                f"max_length must be more than the longest expression of {path.name}, "
                f"{longest} tokens; got {self.max_length}."
            )
        return expressions

    def _draw(self, stream: str, num: int, taken: set[Expression]) -> list[Expression]:
        """Return `num` expressions, all different and none of them in `taken`."""
        generator = random.Random(stream)
        drawn: dict[Expression, None] = {}
        idle = 0
        while len(drawn) < num:
            tokens = self._draw_tree(generator)
            idle += 1
            if tokens is not None and len(tokens) > self.min_length:
                expression = Expression(bytes(tokens), evaluate_expression(tokens))
                if expression not in taken and expression not in drawn:
                    drawn[expression] = None
                    idle = 0
            if idle == _MOST_DRAWS:
                raise ValueError(
                    "min_length, max_length, max_depth and max_arguments must allow as many "
                    f"different expressions as num_eval and batch_size ask for; {_MOST_DRAWS:,} "
                    f"draws in a row gave no new one after {len(drawn)} of {num}."
                )
        return list(drawn)

    def _draw_tree(self, generator: random.Random) -> list[int] | None:
        """Draw one tree, depth first; None as soon as it is too long."""
        tokens: list[int] = []
        missing = [1]  # arguments still to come of every open operator; the first is the whole
        while True:
            while not missing[-1]:
                missing.pop()
                if not missing:
                    return tokens
                tokens.append(_END)
            missing[-1] -= 1
            if len(missing) < self.max_depth and generator.random() < OPERATOR_PROBABILITY:
                tokens.append(generator.randrange(_FIRST_OPERATOR, _END))
                missing.append(generator.randint(2, self.max_arguments))
            else:
                tokens.append(generator.randrange(10))
            if len(tokens) + len(missing) > self.max_length:  # each open operator has a bracket
                return None


def tokenize(expression: str) -> list[int]:
    """Return the numbers of an expression's tokens, which spaces separate.

    The parentheses of the published files, which only repeat the tree, are left out.

    Raises:
        ValueError: another token.
    """
    try:
        return [_NUMBERS[word] for word in expression.split() if word not in ("(", ")")]
    except KeyError as error:
        raise ValueError(
            f"expression must be of the tokens {' '.join(TOKENS)} and parentheses; got {error}."
        ) from None


def evaluate_expression(tokens: Sequence[int]) -> int:
    """Return what an expression comes to, 0 to 9.

    Raises:
        ValueError: the tokens are not one whole expression.
    """
    lists: list[list[int]] = [[]]
    for token in tokens:
        if token < _FIRST_OPERATOR:
            lists[-1].append(token)
        elif token < _END:
            lists.append([token])
        elif len(lists) == 1 or len(lists[-1]) == 1:
            raise ValueError("expression must have an operator and arguments before every ].")
        else:
            operator, *values = lists.pop()
            lists[-1].append(_apply(TOKENS[operator], values))
    if len(lists) != 1 or len(lists[0]) != 1:
        raise ValueError(
            "expression must be one whole list or digit; got one that ends too "
            f"{'early' if len(lists) > 1 else 'late'}."
        )
    return lists[0][0]


def _apply(operator: str, values: list[int]) -> int:
    if operator == "[SM":
        return sum(values) % 10
    values = sorted(values)
    middle = (len(values) - 1) // 2
    return {
        "[MIN": values[0],
        "[MAX": values[-1],
        "[MED": (values[middle] + values[len(values) // 2]) // 2,
    }[operator]


def read_expressions(path: Path) -> list[Expression]:
    """Return the expressions of a table, plain or .gz, with the values that stand beside them.

    Two published forms: the Long Range Arena's, which begins with the line "Source<tab>Target", and
    the original, without such a line and with the value first. The values are not computed anew.

    Raises:
        ValueError: the file cannot be read or is of another form; the message names the line.
    """
    expressions: list[Expression] = []
    number, value_first = 0, True
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                columns = line.rstrip("\r\n").split("\t")
                if number == 1 and columns == ["Source", "Target"]:
                    value_first = False
                    continue
                if columns == [""]:
                    continue
                if len(columns) != 2:
                    raise ValueError("it must have two columns with a tab between them")
                value, expression = columns if value_first else reversed(columns)
                if value not in TOKENS[:NUM_CLASSES]:
                    raise ValueError(f"the value must be a digit; got {value[:20]!r}")
                expressions.append(Expression(bytes(tokenize(expression)), int(value)))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        where = f"{path}, line {number}" if number else path
        raise ValueError(
            f"source must hold expressions and their values; {where}: {error}"
        ) from error
    if not expressions:
        raise ValueError(f"source must hold expressions and their values; {path} has none.")
    return expressions

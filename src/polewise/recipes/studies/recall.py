"""Studies of recall: who finds again what was said once, at which length, among how many."""

from __future__ import annotations

from polewise.recipes.studies.plan import in_steps, study_of
from polewise.recipes.studies.study import Comparison, Size, Study, Subject
from polewise.recipes.studies.systems import (
    LOCAL,
    PAPER,
    PEERS,
    RELATIVES,
    WITH_CONVOLUTION,
    Mixers,
    equal_systems,
    mixers_named,
)
from polewise.tasks import MqarTask, RecallTask


def table1(size: Size) -> Study:
    """Does a causal Focus recall at any length, and do its peers? (paper, Table 1)

    Vocabulary 30, as published: keys come back every 28 tokens, so a window reaches far. With
    `unique` keys the answer may lie anywhere, and models train on it alone. The published C = 32 is
    read both ways, as chunks of 32 and as 32 chunks (at 1024 they are the same), beside a Focus
    without attention.
    """
    if size == "cpu":
        return study_of(
            table1,
            size,
            _recall(
                30, batch_size=64, max_steps=1000, seconds=60, num_seeds=3,
                names=(*PEERS, *RELATIVES, *PAPER),
            ),
            _recall(1024, batch_size=8, max_steps=800, seconds=280, names=(*PEERS, *PAPER)),
            _recall(
                1024, batch_size=8, max_steps=800, seconds=280, num_train=2000,
                names=("focus", "attention", *LOCAL), rates=(2e-3,),
            ),
            _recall(
                128, batch_size=32, max_steps=2000, seconds=360, unique=True, rates=(3e-3,),
                num_seeds=3, num_finalists=1,
                names=tuple(name for name in PEERS if name not in ("hyena", "s4d")),
            ),
            _recall(
                8192, batch_size=2, max_steps=800, seconds=660, rates=(2e-3,),
                names=("focus", "attention-conv", *LOCAL),
            ),
            # What a step takes there, in time and memory.
            _recall(
                32768, batch_size=1, max_steps=3, seconds=60, rates=(2e-3,),
                names=("focus", "attention"), num_eval=1, subject="cost",
            ),
            _recall(
                65536, batch_size=1, max_steps=3, seconds=60, rates=(2e-3,), names=("focus",),
                num_eval=1, subject="cost",
            ),
        )  # fmt: skip
    return study_of(
        table1,
        size,
        *(
            _recall(
                length, batch_size=batch, max_steps=steps, num_seeds=3,
                names=(*PEERS, *RELATIVES, *PAPER),
            )
            for length, batch, steps in (
                (30, 64, 5000), (1024, 32, 5000), (8192, 16, 5000), (32768, 8, 5000),
                (65536, 8, 5000),
            )
        ),
        _recall(1024, batch_size=32, max_steps=5000, num_train=2000, num_seeds=3),
        _recall(1024, batch_size=32, max_steps=5000, unique=True, num_seeds=3),
    )  # fmt: skip


def _recall(
    length: int,
    *,
    batch_size: int,
    max_steps: int,
    seconds: float | None = None,
    rates: tuple[float, ...] = (3e-3, 1e-2),
    num_seeds: int = 1,
    num_train: int | None = None,
    num_eval: int = 500,
    unique: bool = False,
    num_finalists: int | None = None,
    subject: Subject = "learning",
    names: tuple[str, ...] = (*PEERS, *RELATIVES),
) -> Comparison:
    chunk_length = -(-length // 32)
    task = RecallTask(
        length=length,
        vocab_size=length + 2 if unique else 30,
        num_train=num_train,
        num_eval=num_eval,
        batch_size=batch_size,
        unique_keys=unique,
        answer_only=unique,
        align_to=max(32, chunk_length),
    )
    chosen = _recallers(names, length, padded=task.spec.length)
    chosen["focus-chunks-of-32"] = ("focus", {"chunk_length": 32})
    if chunk_length != 32:
        chosen["focus-32-chunks"] = ("focus", {"chunk_length": chunk_length})
    extra = "-unique" if unique else "" if num_train is None else f"-of-{num_train}"
    window = task.window_ceiling(32)
    return Comparison(
        name=f"{length}{extra}",
        task=task,
        systems=equal_systems(task.spec, chosen, dim=64, num_layers=2),
        training=in_steps(max_steps, stop_at=1.0),
        learning_rates=rates,
        num_seeds=num_seeds,
        num_finalists=num_finalists,
        expected_seconds=seconds,
        subject=subject,
        note=f"A window of 32 tokens can reach {window:.0%}. Local attention has its usual four "
        "heads, attention the one of the published benchmark.",
    )


def _recallers(names: tuple[str, ...], length: int, padded: int) -> Mixers:
    """These mixers, attention with the one head of the published benchmark, and some of them again
    with what they may only lack by our settings: sight of the whole sequence, which is `padded`, or
    the short convolution that Focus and Mamba-2 begin with. Hyena's kernel
    reaches over all of it."""
    with_convolution = (name for name, (mixer, _) in WITH_CONVOLUTION.items() if mixer in names)
    whole = ("mega-whole",) if "mega" in names and 32 < length <= 1024 else ()
    chosen = mixers_named(*names, *with_convolution, *whole, chunk_length=32, length=length)
    for name, (mixer, options) in chosen.items():
        if mixer == "attention":
            chosen[name] = (mixer, {"heads": 1, **options})
        elif mixer == "hyena":
            chosen[name] = (mixer, {**options, "taps": padded})
    if whole:
        chosen["mega-whole"] = ("mega", {"chunk_length": padded})
    return chosen


def mqar(size: Size) -> Study:
    """Who recalls many keys of one sequence, and with how large a state? (Arora et al. 2023)

    One cell of 64 tokens with 8 pairs, then a mixture of lengths and numbers of pairs, tested on
    loads that were not trained on. Every model has a feed-forward, which the published ones do
    not. Budgets are far below the published 100,000 sequences in 64 epochs: what a system learns
    within them is the question. `64-8-long` asks it of a few that have not learned the cell, with
    more patience.
    """
    if size == "cpu":
        cell = MqarTask(
            train_on="64:8", test_on="64:8", vocab_size=512, batch_size=64, num_eval=200
        )
        mixture = MqarTask(vocab_size=512, batch_size=32, num_eval=200)
        # 4096 positions a step in the cell, 192 * 32 on average in the mixture.
        return study_of(
            mqar,
            size,
            _mqar("64-8", cell, dim=64, max_steps=600, seconds=90, num_seeds=3, num_finalists=3),
            _mqar(
                "64-8-long",
                cell,
                dim=64,
                max_steps=3000,
                seconds=450,
                names=("attention", "mega", "mamba2"),
            ),
            _mqar(
                "mixture-width-64",
                mixture,
                dim=64,
                max_steps=600,
                seconds=160,
                num_seeds=3,
                num_finalists=2,
            ),
            _mqar(
                "mixture-width-128",
                mixture,
                dim=128,
                max_steps=500,
                seconds=340,
                num_seeds=3,
                num_finalists=1,
                names=(*PEERS, "long_conv", "mamba3"),
            ),
        )
    mixture = MqarTask(test_on="64:4,64:8,64:16,128:32,256:64,512:128,1024:256", num_eval=1000)
    return study_of(
        mqar,
        size,
        *(
            _mqar(f"mixture-width-{dim}", mixture, dim=dim, max_steps=50_000, num_seeds=3)
            for dim in (64, 128, 256)
        ),
    )  # fmt: skip


def _mqar(
    name: str,
    task: MqarTask,
    *,
    dim: int,
    max_steps: int,
    seconds: float | None = None,
    num_seeds: int = 1,
    num_finalists: int | None = None,
    names: tuple[str, ...] = (*PEERS, "long_conv", *RELATIVES),
) -> Comparison:
    if task.spec.length > 256:
        # A long kernel for every channel may be more than the whole of another model.
        names = tuple(name for name in names if name != "long_conv")
    chosen = _recallers(names, task.spec.length, padded=task.spec.length)
    return Comparison(
        name=name,
        task=task,
        systems=equal_systems(task.spec, chosen, dim=dim, num_layers=2),
        training=in_steps(max_steps, stop_at=1.0),
        learning_rates=(3e-3, 1e-2),
        num_seeds=num_seeds,
        num_finalists=num_finalists,
        expected_seconds=seconds,
        note=f"Vocabulary {task.vocab_size}; trained on {task.train_on} (length:pairs). Attention "
        "in chunks of 32 can answer the queries among the first 32 tokens alone.",
    )

"""The studies by name.

The `cpu` size of each takes at most three hours on two cores, that is six core hours, or 21,600
seconds of one core, grid and seeds included: `Study.total_seconds` adds up `expected_seconds` of
every run, and a test holds it to that. Measured with Focus, one core, forward and backward with
AdamW, torch 2.13 on a 2-core x86-64 machine, positions per second:

    width 64, 2 layers: 24,000 at lengths 32 to 1056, vocabulary 30; 22,500 with vocabulary 512
    width 128, 2 layers, vocabulary 512: 13,000
    width 128, 4 layers, bytes: 7,400

A budget in seconds is that of a run with a core of its own, nothing else running: `--jobs 2` on two
cores. Twenty minutes each are twenty minutes of wall clock for two runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from polewise.recipes.studies.study import Comparison, Size, Study, System
from polewise.recipes.studies.systems import Mixers, equal_systems, mixers
from polewise.tasks import ImagesTask, MqarTask, RecallTask, SpokenDigitsTask, TextTask
from polewise.tasks.options import require_choice
from polewise.training import TrainingOptions

_PEERS = (
    "focus", "attention", "chunk_attention", "sliding_attention", "mega", "hyena", "s4d", "mamba2"
)  # fmt: skip
_CLASSIFIERS = tuple(name for name in _PEERS if name != "hyena")
_RELATIVES = ("mamba3", "gated_linear_attention")


def table1(size: Size) -> Study:
    """Does a causal Focus recall at any length, and do its peers? (paper, Table 1)

    Vocabulary 30, as published: keys come back every 28 tokens, so a window reaches far. With
    `unique` keys the answer may lie anywhere. The published C = 32 is read both ways, as chunks of
    32 (`focus`) and as 32 chunks (`focus-32-chunks`); at 1024 they are the same.
    """
    if size == "cpu":
        return _study(
            size,
            table1,
            _recall(30, batch_size=64, max_steps=1000, seconds=90, num_seeds=3),
            _recall(1024, batch_size=8, max_steps=800, seconds=280, names=_PEERS),
            _recall(
                1024, batch_size=8, max_steps=800, seconds=280, num_train=2000,
                names=("focus", "attention"), rates=(2e-3,),
            ),
            _recall(
                128, batch_size=32, max_steps=1000, seconds=250, unique=True, rates=(3e-3,),
                names=("focus", "attention", "mamba2", "associative"),
            ),
            _recall(
                8192, batch_size=2, max_steps=800, seconds=550, rates=(2e-3,), names=("focus",)
            ),
            # What a step takes there, in time and memory; three are no training.
            _recall(
                32768, batch_size=1, max_steps=3, seconds=300, rates=(2e-3,),
                names=("focus", "attention"), num_eval=1,
            ),
            _recall(
                65536, batch_size=1, max_steps=3, seconds=300, rates=(2e-3,), names=("focus",),
                num_eval=1,
            ),
        )  # fmt: skip
    return _study(
        size,
        table1,
        *(
            _recall(length, batch_size=batch, max_steps=steps, num_seeds=3)
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
    names: tuple[str, ...] = (*_PEERS, *_RELATIVES, "associative"),
) -> Comparison:
    chosen = mixers(*names, chunk_length=32, length=length)
    if "gated_linear_attention" in chosen:  # is it the short convolution that the others have?
        chosen["gated_linear_attention-conv"] = ("gated_linear_attention", {"conv_width": 4})
    chunk_length = -(-length // 32)
    if chunk_length != 32:
        chosen["focus-32-chunks"] = ("focus", {"chunk_length": chunk_length})
    task = RecallTask(
        length=length,
        vocab_size=length + 2 if unique else 30,
        num_train=num_train,
        num_eval=num_eval,
        batch_size=batch_size,
        unique_keys=unique,
        align_to=max(32, chunk_length),
    )
    extra = "-unique" if unique else "" if num_train is None else f"-of-{num_train}"
    window = task.window_ceiling(32)
    return Comparison(
        name=f"{length}{extra}",
        task=task,
        systems=equal_systems(task.spec, chosen, dim=64, num_layers=2),
        training=_steps(max_steps, stop_at=1.0),
        learning_rates=rates,
        num_seeds=num_seeds,
        expected_seconds=seconds,
        note=f"A window of 32 tokens can reach {window:.0%}.",
    )


def mqar(size: Size) -> Study:
    """Who recalls many keys of one sequence, and with how large a state? (Arora et al. 2023)

    One cell of 64 tokens with 8 pairs, then a mixture of lengths and numbers of pairs, tested on
    loads that were not trained on. Every model has a feed-forward, which the published ones do
    not. Budgets are far below the published 100,000 sequences in 64 epochs: what a system learns
    within them is the question.
    """
    if size == "cpu":
        cell = MqarTask(
            train_on="64:8", test_on="64:8", vocab_size=512, batch_size=64, num_eval=200
        )
        mixture = MqarTask(vocab_size=512, batch_size=32, num_eval=200)
        # 4096 positions a step in the cell, 192 * 32 on average in the mixture.
        return _study(
            size,
            mqar,
            _mqar("64-8", cell, dim=64, max_steps=600, seconds=110, num_seeds=3),
            _mqar("mixture-width-64", mixture, dim=64, max_steps=600, seconds=180),
            _mqar("mixture-width-128", mixture, dim=128, max_steps=500, seconds=270),
        )
    mixture = MqarTask(test_on="64:4,64:8,64:16,128:32,256:64,512:128,1024:256", num_eval=1000)
    return _study(
        size,
        mqar,
        *(
            _mqar(f"mixture-width-{dim}", mixture, dim=dim, max_steps=50_000, num_seeds=3)
            for dim in (64, 128, 256)
        ),
    )


def _mqar(
    name: str,
    task: MqarTask,
    *,
    dim: int,
    max_steps: int,
    seconds: float | None = None,
    num_seeds: int = 1,
) -> Comparison:
    # A long kernel for every channel may be more than the whole of another model.
    long_conv = ("long_conv",) if task.spec.length <= 256 else ()
    names = (*_PEERS, *long_conv, *_RELATIVES)
    chosen = mixers(*names, chunk_length=32, length=task.spec.length)
    return Comparison(
        name=name,
        task=task,
        systems=equal_systems(task.spec, chosen, dim=dim, num_layers=2),
        training=_steps(max_steps, stop_at=1.0),
        learning_rates=(3e-3, 1e-2),
        num_seeds=num_seeds,
        expected_seconds=seconds,
        note=f"Vocabulary {task.vocab_size}; trained on {task.train_on} (length:pairs).",
    )


def table2(size: Size) -> Study:
    """Whose bits per byte are fewest, at equal parameters and in equal time? (paper, Table 2)

    The cpu size has about a million parameters and twenty minutes: dickens, windows of 512. The
    gpu size is the paper's: 22 million, enwik8, and steps in place of minutes.
    """
    if size == "cpu":
        return _study(
            size,
            table2,
            Comparison(
                name="equal-time",
                task=_DICKENS,
                systems=_text_systems(_DICKENS, _PEERS),
                training=_seconds(1200),
                learning_rates=(2e-3, 6e-3),
                grid_share=0.06,
                expected_seconds=1200,
            ),
        )
    task = TextTask(source="enwik8", length=2048, batch_size=16)
    return _study(
        size,
        table2,
        Comparison(
            name="equal-steps",
            task=task,
            systems=equal_systems(
                task.spec,
                mixers(*_PEERS, chunk_length=128, length=task.length),
                dim=512,
                num_layers=8,
            ),
            training=_steps(50_000, evaluate_every=2000),
            learning_rates=(3e-4, 1e-3, 3e-3),
            grid_share=0.1,
        ),
    )


def text(size: Size) -> Study:
    """Whose bits per byte are fewest in equal steps, and how far apart are seeds?

    The models and the text of `table2` at its cpu size.
    """
    cpu = size == "cpu"
    return _study(
        size,
        text,
        Comparison(
            name="equal-steps",
            task=_DICKENS,
            systems=_text_systems(_DICKENS, (*_PEERS, *_RELATIVES)),
            training=_steps(600 if cpu else 10_000),
            learning_rates=(2e-3, 6e-3),
            grid_share=0.2,
            num_seeds=3,
            expected_seconds=400 if cpu else None,
        ),
    )


_DICKENS = TextTask(source="dickens", length=512, batch_size=8, eval_bytes=50_000)


def _text_systems(task: TextTask, names: tuple[str, ...]) -> tuple[System, ...]:
    chosen = mixers(*names, chunk_length=64, length=task.length)
    return equal_systems(task.spec, chosen, dim=128, num_layers=4)


def table4(size: Size) -> Study:
    """Who names a digit best from its pixels, one after another? (paper, Table 4)"""
    return _study(size, table4, _digits(size, permuted=False))


def table5(size: Size) -> Study:
    """What does a training step take, in time and memory, as sequences grow? (paper, Table 5)

    Six steps of recall, one sequence at a time, for their cost alone: the accuracy says nothing.
    The memory is the whole process's; a system that does not fit ends the study there.
    """
    cpu = size == "cpu"

    def steps(length: int, seconds: float | None) -> Comparison:
        task = RecallTask(length=length, num_eval=1, batch_size=1, align_to=64)
        return Comparison(
            name=f"{length}",
            task=task,
            systems=equal_systems(
                task.spec,
                mixers(*_PEERS, *_RELATIVES, chunk_length=64, length=length),
                dim=64 if cpu else 256,
                num_layers=2 if cpu else 6,
            ),
            training=_steps(6),
            learning_rates=(1e-3,),
            expected_seconds=seconds,
        )

    if cpu:
        sizes = {512: 10.0, 2048: 10.0, 8192: 30.0, 16384: 90.0}
        return _study(size, table5, *(steps(*each) for each in sizes.items()))
    return _study(size, table5, *(steps(each, None) for each in (2048, 8192, 32768, 131072)))


def permuted(size: Size) -> Study:
    """Who names a digit best from its pixels in an order that hides what is near?"""
    return _study(size, permuted, _digits(size, permuted=True))


def _digits(size: Size, *, permuted: bool) -> Comparison:
    cpu = size == "cpu"
    task = ImagesTask(
        source="mnist", permuted=permuted, num_eval=5000 if cpu else None,
        batch_size=32 if cpu else 50,
    )  # fmt: skip
    return Comparison(
        name="mnist",
        task=task,
        systems=equal_systems(
            task.spec,
            mixers(*_CLASSIFIERS, chunk_length=32, length=784),
            dim=64 if cpu else 512,
            num_layers=2 if cpu else 6,
        ),
        training=_seconds(1200) if cpu else _steps(110_000, evaluate_every=1100),
        learning_rates=(3e-3, 1e-2) if cpu else (3e-4, 1e-3, 3e-3),
        grid_share=0.06 if cpu else 0.1,
        expected_seconds=1200 if cpu else None,
        num_seeds=1 if cpu else 3,
    )


def audio(size: Size) -> Study:
    """Who names a spoken digit best from raw samples, and one of a speaker never heard?

    The official split, in which every speaker is heard in training, and the mean over six runs
    that leave out one speaker each.
    """
    cpu = size == "cpu"

    def spoken(names: tuple[str, ...], speaker: str | None, rates: tuple[float, ...]) -> Comparison:
        task = SpokenDigitsTask(samples_per_step=8 if cpu else 1, test_speaker=speaker)
        return Comparison(
            name="official" if speaker is None else f"without-{speaker}",
            task=task,
            systems=equal_systems(
                task.spec,
                mixers(*names, chunk_length=32, length=task.spec.length),
                dim=64 if cpu else 256,
                num_layers=2 if cpu else 6,
            ),
            training=_seconds(480) if cpu else _steps(20_000),
            learning_rates=rates,
            grid_share=0.2 if len(rates) > 1 else 1.0,
            expected_seconds=480 if cpu else None,
            note="8000 samples a second, 8 of them a step." if cpu else "8000 steps a second.",
        )

    official = spoken(_CLASSIFIERS, None, (3e-3, 1e-2))
    others = [
        spoken(("focus", "s4d", "mamba2"), speaker, (3e-3,))
        for speaker in ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
    ]
    return _study(size, audio, official, *others, mean_over="without-*")


def ablations(size: Size) -> Study:
    """What does each part of Focus bring, and each of its choices?

    Every system is Focus with one thing changed, at equal parameters.
    """
    parts: dict[str, dict[str, Any]] = {
        "focus": {},
        "fixed-poles": {"hypernetwork": "none"},
        "first-order": {"turning": False},
        "first-order-fixed": {"turning": False, "hypernetwork": "none"},
        "embedder-long-conv": {"hypernetwork": "long_conv", "taps": 64},
        "embedder-shared": {"hypernetwork": "shared_recurrent"},
        "direct-form": {"realisation": "direct"},
        "direct-form-reset": {"realisation": "direct", "reset": True},
        "reset": {"reset": True},
        "no-memory": {"associative_heads": 0},
        "no-convolution": {"conv_width": 0},
        "memory-turning": {"associative_turning": True},
        "no-attention": {"chunk_length": 1},
        "filter-alone": {"chunk_length": 1, "associative_heads": 0},
        "sliding": {"sliding": True},
        "separate-query-key": {"shared_query_key": False},
        "gates-as-printed": {"published_gates": True},
        "no-skip": {"skip": False},
        "short-memories": {"max_decay": 0.9},
        **{f"filters-{n}": {"filters": n} for n in (2, 4)},
        **{f"bins-of-{n}": {"bin_length": n} for n in (8, 128)},
        **{f"chunks-of-{n}": {"chunk_length": n} for n in (16, 128)},
        **{f"windows-{n}": {"windows": n} for n in (1, 16)},
    }
    changes: Mixers = {name: ("focus", options) for name, options in parts.items()}
    cpu = size == "cpu"
    text = TextTask(source="dickens", length=256, batch_size=16, eval_bytes=50_000)
    recall = RecallTask(length=256, batch_size=16, align_to=128)
    systems = equal_systems(text.spec, changes, dim=64 if cpu else 256, num_layers=2 if cpu else 6)
    return _study(
        size,
        ablations,
        Comparison(
            name="text",
            task=text,
            systems=systems,
            training=_steps(500 if cpu else 10_000),
            learning_rates=(2e-3, 6e-3),
            num_seeds=2 if cpu else 3,
            expected_seconds=110 if cpu else None,
        ),
        Comparison(
            name="recall",
            task=recall,
            systems=systems,
            training=_steps(500 if cpu else 5000, stop_at=1.0),
            learning_rates=(2e-3, 6e-3),
            num_seeds=2 if cpu else 3,
            expected_seconds=140 if cpu else None,
        ),
    )


def leak(size: Size) -> Study:
    """How far below the honest bits per byte does the literal formula of the paper go?

    `literal` is the paper's filter as printed, circular and conjugate, which shows every output
    the rest of its bin; the others differ from it in the filter alone. Its figure is not a result.
    """
    paper = {"hypernetwork": "long_conv", "taps": 64, "associative_heads": 0, "windows": 1}
    paper |= {"conv_width": 0, "skip": False, "published_gates": True, "shared_query_key": False}
    paper |= {"bin_length": 64, "chunk_length": 64}
    cpu = size == "cpu"
    task = TextTask(source="dickens", length=256, batch_size=16, eval_bytes=50_000)
    chosen: Mixers = {
        "focus": ("focus", {}),
        "literal": ("focus", {**paper, "realisation": "circular", "leak": True}),
        "causal-direct": ("focus", {**paper, "realisation": "direct", "reset": True}),
        "causal-normal": ("focus", {**paper, "realisation": "normal"}),
    }
    return _study(
        size,
        leak,
        Comparison(
            name="text",
            task=task,
            systems=equal_systems(
                task.spec, chosen, dim=64 if cpu else 512, num_layers=2 if cpu else 8
            ),
            training=_steps(1000 if cpu else 20_000),
            learning_rates=(1e-3, 3e-3, 1e-2) if cpu else (3e-4, 1e-3, 3e-3),
            num_seeds=3,
            expected_seconds=300 if cpu else None,
        ),
    )


STUDIES: dict[str, Callable[[Size], Study]] = {
    "table1": table1,
    "table2": table2,
    "text": text,
    "table4": table4,
    "permuted": permuted,
    "audio": audio,
    "table5": table5,
    "mqar": mqar,
    "ablations": ablations,
    "leak": leak,
}
"""Every study by name. A new one is a function and a line here."""


def build_study(name: str, size: Size) -> Study:
    """Return a study, with all its runs checked.

    Raises:
        ValueError: no study of that name; the nearest is suggested.
    """
    require_choice("study", name, STUDIES)
    return STUDIES[name](size)


def question(name: str) -> str:
    """Return what a study asks: the first line of its function."""
    return (inspect.getdoc(STUDIES[name]) or "").splitlines()[0]


def _study(
    size: Size, build: Callable[[Size], Study], *comparisons: Comparison, mean_over: str = ""
) -> Study:
    name = build.__name__
    return Study(
        name=name, size=size, question=question(name), comparisons=comparisons, mean_over=mean_over
    )


def _steps(
    max_steps: int, *, evaluate_every: int | None = None, stop_at: float | None = None
) -> TrainingOptions:
    """A budget in steps, evaluated ten times unless said otherwise."""
    every = evaluate_every or max(max_steps // 10, 1)
    return TrainingOptions(
        max_steps=max_steps,
        evaluate_every=every,
        checkpoint_every=every,
        log_every=min(10, every),
        keep_checkpoints=1,
        stop_at=stop_at,
    )


def _seconds(max_seconds: float) -> TrainingOptions:
    """A budget in seconds of training, evaluations not counted."""
    return TrainingOptions(
        max_seconds=max_seconds, evaluate_every=400, checkpoint_every=400, keep_checkpoints=1
    )

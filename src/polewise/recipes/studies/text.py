"""Studies of text: bits per byte in equal time, in equal steps, and with a filter that leaks."""

from __future__ import annotations

from polewise.mixers import PublishedFocusConfig, all_options
from polewise.recipes.studies.plan import in_seconds, in_steps, study_of
from polewise.recipes.studies.study import Comparison, Size, Study, System
from polewise.recipes.studies.systems import (
    DEEP,
    PAPER,
    PEERS,
    RELATIVES,
    Mixers,
    equal_systems,
    mixers_named,
)
from polewise.tasks import TextTask

_DICKENS = TextTask(source="dickens", length=512, batch_size=8, eval_bytes=50_000)
_OTHERWISE = ("attention-conv-deep", "s4d-deep", "mega-whole")
_PARTS = ("focus-fixed-filters", "focus-convolution")


def table2(size: Size) -> Study:
    """Whose bits per byte are fewest, at equal parameters and in equal time? (paper, Table 2)

    The cpu size has about a million parameters and twenty minutes: dickens, windows of 512. The
    gpu size is the paper's: 22 million, enwik8 and text8, and steps in place of minutes.
    """
    if size == "cpu":
        return study_of(
            table2,
            size,
            Comparison(
                name="equal-time",
                task=_DICKENS,
                systems=_text_systems(_DICKENS, (*PEERS, "mamba3", "mamba2-deep", *_PARTS)),
                training=in_seconds(1200),
                learning_rates=(2e-3, 6e-3),
                grid_share=0.06,
                num_seeds=3,
                num_finalists=2,
                expected_seconds=1220,
            ),
        )
    tasks = [TextTask(source=name, length=2048, batch_size=16) for name in ("enwik8", "text8")]
    names = (*PEERS, "mamba3", "mamba2-deep", *PAPER)
    return study_of(
        table2,
        size,
        *(
            Comparison(
                name=task.source,
                task=task,
                systems=_text_systems(task, names, chunk_length=128, dim=512, num_layers=8),
                training=in_steps(50_000, evaluate_every=2000),
                learning_rates=(3e-4, 1e-3, 3e-3),
                grid_share=0.1,
            )
            for task in tasks
        ),
    )


def text(size: Size) -> Study:
    """Whose bits per byte are fewest in equal steps, and how far apart are seeds?

    The models and the text of `table2` at its cpu size, and some as they are not there: a
    Transformer with a short convolution, it and S4D without feed-forwards in more layers, MEGA with
    a chunk as long as the window, the paper's own Focus, causal.
    """
    cpu = size == "cpu"
    return study_of(
        text,
        size,
        Comparison(
            name="equal-steps",
            task=_DICKENS,
            systems=_text_systems(
                _DICKENS,
                (*PEERS, *RELATIVES, *PAPER, "mamba2-deep", "attention-conv", *_OTHERWISE, *_PARTS),
            ),
            training=in_steps(600 if cpu else 10_000),
            learning_rates=(2e-3, 6e-3),
            grid_share=0.2,
            num_seeds=3,
            num_finalists=2,
            expected_seconds=590 if cpu else None,
        ),
    )


def leak(size: Size) -> Study:
    """How far below the honest bits per byte does the literal formula of the paper go?

    `literal` is the paper's filter as printed, circular and conjugate, which shows every output
    the rest of its bin: its figure is not a result. `causal-square` is that filter's recursion, its
    region and start the same. The other two have the whole triangle, or the normal form, each from
    a start of its own, and `focus` is ours.
    """
    cpu = size == "cpu"
    dim = 64 if cpu else 512
    literal = all_options(
        PublishedFocusConfig.paper(
            dim=dim, bin_length=64, chunk_length=64, taps=64, causal=True, leak=True
        )
    )
    paper = {**literal, "leak": False}
    task = TextTask(source="dickens", length=256, batch_size=16, eval_bytes=50_000)
    chosen: Mixers = {
        "focus": ("focus", {}),
        "literal": ("published_focus", literal),
        "causal-square": ("published_focus", {**paper, "realisation": "square", "reset": True}),
        "causal-direct": ("published_focus", {**paper, "realisation": "direct", "reset": True}),
        "causal-normal": ("published_focus", {**paper, "realisation": "normal"}),
    }
    return study_of(
        leak,
        size,
        Comparison(
            name="text",
            task=task,
            systems=equal_systems(task.spec, chosen, dim=dim, num_layers=2 if cpu else 8),
            training=in_steps(1000 if cpu else 20_000),
            learning_rates=(1e-3, 3e-3, 1e-2) if cpu else (3e-4, 1e-3, 3e-3),
            num_seeds=3,
            expected_seconds=300 if cpu else None,
        ),
    )


def _text_systems(
    task: TextTask,
    names: tuple[str, ...],
    *,
    chunk_length: int = 64,
    dim: int = 128,
    num_layers: int = 4,
) -> tuple[System, ...]:
    chosen = mixers_named(*names, chunk_length=chunk_length, length=task.length)
    if "hyena" in chosen:  # what its authors give the network that writes the kernel, for text
        chosen["hyena"] = ("hyena", {"taps": task.length, "bands": 16, "sharpness": 14.0})
    return equal_systems(task.spec, chosen, dim=dim, num_layers=num_layers, deep=DEEP)

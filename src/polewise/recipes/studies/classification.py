"""Studies of classification: a digit from its pixels, or from the samples of its sound."""

from __future__ import annotations

from dataclasses import replace

from polewise.recipes.studies.plan import in_seconds, in_steps, study_of
from polewise.recipes.studies.study import Comparison, Size, Study
from polewise.recipes.studies.systems import (
    DEEP,
    PAPER,
    PEERS,
    WITHOUT_MEMORY,
    equal_systems,
    mixers_named,
)
from polewise.tasks import ImagesTask, SpokenDigitsTask

CLASSIFIERS = (*(name for name in PEERS if name != "hyena"), "mamba2-deep", "s4d-deep")
_SLOWED = ("focus", "mega", "s4d", "mamba2-deep")
TOO_MANY = ("mamba2", "s4d-deep", "focus-convolution", "focus-filters")
"""Not asked for pixels in twenty minutes: Mamba-2 takes part as its authors stack it, without
feed-forwards, S4D so makes one step while Focus makes four, a convolution sees 31 pixels, and poles
chosen for every bin, the slower ones, were behind learned ones wherever both were asked."""


def table4(size: Size) -> Study:
    """Who names a digit best from its pixels, one after another? (paper, Table 4)"""
    return study_of(table4, size, _digits(size, permuted=False))


def permuted(size: Size) -> Study:
    """Who names a digit best from its pixels in an order that hides what is near?"""
    return study_of(permuted, size, _digits(size, permuted=True))


def slow_filters(size: Size) -> Study:
    """Should filters learn more slowly than matrices?

    As `permuted`, for Focus, MEGA, S4D and the deep Mamba-2, whose filter parameters learn at three
    tenths of the rate here.
    """
    whole = _digits(size, permuted=True)
    return study_of(
        slow_filters,
        size,
        replace(
            whole,
            systems=tuple(each for each in whole.systems if each.name in _SLOWED),
            training=replace(whole.training, filter_learning_rate=0.3),
        ),
    )


def _digits(size: Size, *, permuted: bool) -> Comparison:
    cpu = size == "cpu"
    task = ImagesTask(source="mnist", permuted=permuted, batch_size=10 if cpu else 50)
    length = task.spec.length
    names = (*CLASSIFIERS, *(WITHOUT_MEMORY if permuted else PAPER))
    if cpu:
        names = tuple(name for name in names if name not in TOO_MANY)
    chosen = mixers_named(*names, chunk_length=32, length=length)
    # What Transformers have that classify images: sight both ways, and positions of their own.
    chosen["attention-positions"] = ("attention", {"causal": False, "positions": length})
    return Comparison(
        name="mnist",
        task=task,
        systems=equal_systems(
            task.spec,
            chosen,
            dim=64 if cpu else 512,
            num_layers=2 if cpu else 6,
            deep=DEEP,
            # A mean forgets where a pixel stood, which in this order is all there is to know.
            pooling="last" if permuted else "mean",
        ),
        training=(
            in_seconds(1200, evaluate_every=1000) if cpu else in_steps(110_000, evaluate_every=1100)
        ),
        learning_rates=(2e-3, 6e-3) if cpu else (3e-4, 1e-3, 3e-3),
        # In the first minute nobody has left the plateau with which this task begins.
        grid_share=0.15 if cpu else 0.1,
        expected_seconds=1540 if cpu else None,
        # In random order chance is larger than what the aim was missed by with one seed.
        num_seeds=3 if permuted or not cpu else 1,
        num_finalists=1 if cpu else None,
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
                mixers_named(*names, chunk_length=32, length=task.spec.length),
                dim=64 if cpu else 256,
                num_layers=2 if cpu else 6,
                deep=DEEP,
            ),
            training=in_seconds(480) if cpu else in_steps(20_000),
            learning_rates=rates,
            grid_share=0.2 if len(rates) > 1 else 1.0,
            expected_seconds=495 if cpu else None,
            note="8000 samples a second, 8 of them a step." if cpu else "8000 steps a second.",
        )

    official = spoken(CLASSIFIERS, None, (3e-3, 1e-2))
    others = [
        spoken(("focus", "s4d", "mamba2"), speaker, (3e-3, 1e-2))
        for speaker in ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
    ]
    return study_of(audio, size, official, *others, mean_over="without-*")

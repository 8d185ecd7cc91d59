"""Figures of a run, drawn from the numbers beside this file. Never opens a window."""

from __future__ import annotations

import io
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from polewise.analysis.learning_curve import learning_curve
from polewise.analysis.placed_filters import PlacedFilters, placed_filters
from polewise.replace_file import replace_file
from polewise.training import RunFolder

_WIDTH, _HEIGHT = 6.4, 4.4
_MOST_POINTS = 4000
_MOST_COLUMNS = 400


def write_figures(folder: RunFolder) -> list[Path]:
    """Write the figures of a run into its folder, each with its caption in a `.txt` beside it.

    The learning curve always; where the model places its own poles these, for the first held-out
    sequence, and of filters of channels the frequency responses.
    """
    run = folder.read_run()
    written = [draw_learning_curve(folder)]
    batch = next(iter(run.task.eval_batches()))
    batch = {name: value[:1] for name, value in batch.items()}
    for layer, placed in enumerate(placed_filters(folder.load_model(), batch)):
        written.append(draw_poles(folder.figures_path / f"poles-layer-{layer}.png", placed))
        if placed.mix is not None:
            target = folder.figures_path / f"frequency-responses-layer-{layer}.png"
            written.append(draw_frequency_responses(target, placed))
    return written


def draw_learning_curve(folder: RunFolder) -> Path:
    """Draw the training loss and the headline metric over the steps."""
    run, records = folder.read_run(), folder.read_metrics()
    headline = run.task.headline
    named = f"training loss ({'squared error' if run.task.spec.kind == 'forecast' else 'nats'})"
    figure, axes = _figure()
    try:
        loss = learning_curve(records, "train", "loss")
        axes.plot(loss.steps, loss.values, color="0.6", label=named)
    except ValueError:
        pass  # a run shorter than one line of the log
    axes.set_xlabel("step")
    axes.set_ylabel(named)
    unit = headline.replace("_", " ")
    caption = (
        f"{run.model.mixer} on {run.task_name}: training loss (grey, mean of "
        f"{run.training.log_every} steps) and held-out {unit} (blue). "
    )
    try:
        measured = learning_curve(records, "eval", headline)
    except ValueError:
        caption += "No held-out value was finite."
    else:
        right = axes.twinx()
        right.plot(measured.steps, measured.values, "o-", color="C0", label=f"held-out {unit}")
        right.set_ylabel(f"held-out {unit}", color="C0")
        if headline == "accuracy":
            right.set_ylim(0, 1.03)
        caption += (
            f"The last value is {measured.values[-1]:.4g} at step {measured.steps[-1]}, after "
            f"{measured.seconds[-1]:.0f} s of training."
        )
    return _write(figure, folder.figures_path / "learning-curve.png", caption)


def draw_poles(path: Path, placed: PlacedFilters) -> Path:
    """Draw the poles in the upper half of the unit disc, coloured by bin where they move."""
    figure, axes = _figure()
    circle = np.exp(1j * np.linspace(0, np.pi, 256))
    axes.plot(circle.real, circle.imag, color="0.6", linewidth=0.8)
    poles = placed.poles[0].flatten(1).numpy()
    bins, num = poles.shape
    moving = placed.moving
    filters = _evenly(num, _MOST_POINTS)
    times = _evenly(bins if moving else 1, max(_MOST_POINTS // len(filters), 1))
    shown = poles[np.ix_(times, filters)]
    colours = np.broadcast_to(times[:, None], shown.shape)
    drawn = axes.scatter(
        shown.real, np.abs(shown.imag), c=colours, s=6, cmap="viridis", linewidths=0, alpha=0.7
    )
    # A memory chooses at every step, for all pairs of a key's channels and every head.
    when, what = ("bin", "filters") if placed.mix is not None else ("step", "pairs and heads")
    if moving:
        figure.colorbar(drawn, ax=axes, label=when, shrink=0.7)
    axes.set_aspect("equal")
    axes.set_xlim(-1.05, 1.05)
    axes.set_ylim(-0.05, 1.05)
    axes.set_xlabel("real part")
    axes.set_ylabel("imaginary part")
    where = f" at each of {bins} {when}s (colour)" if moving else ", the same for every sequence"
    drawn_of = f"{len(filters)} in {len(times)} of them" if moving else f"{len(filters)}"
    caption = (
        f"Poles that {placed.name} places for one held-out sequence: {num} {what}{where}, "
        f"{drawn_of} drawn. The distance from 0 "
        f"is the decay per sample (median {np.median(np.abs(poles)):.3f}), the angle 2 pi times "
        "the frequency; conjugates are not drawn."
    )
    return _write(figure, path, caption)


def draw_frequency_responses(path: Path, placed: PlacedFilters) -> Path:
    """Draw the gain over frequency: the median over channels in every bin, or, where poles do not
    move, how the channels differ.

    Raises:
        ValueError: the poles are a memory's.
    """
    frequency = torch.linspace(0, 0.5, 129, dtype=torch.float64)
    bins = placed.coefficients.shape[1]
    times = _evenly(bins if placed.moving else 1, _MOST_COLUMNS)
    drawn_bins = replace(placed, coefficients=placed.coefficients[:1, times])
    gain = drawn_bins.frequency_response(frequency)[0].abs().numpy()
    at, decibels = frequency.numpy(), 20 * np.log10(np.maximum(gain, 1e-12))
    figure, axes = _figure()
    if placed.moving:
        median = np.median(decibels, axis=1)
        drawn = axes.pcolormesh(
            np.append(times, bins), at, median.T[:-1], cmap="magma", shading="flat"
        )
        figure.colorbar(drawn, ax=axes, label="gain (dB)")
        axes.set_xlabel("bin")
        axes.set_ylabel("frequency (cycles per sample)")
        caption = (
            f"Gain of the filters that {placed.name} places over the bins of one held-out "
            "sequence, the median over its channels. At one frequency it changes by up to "
            f"{np.ptp(median, axis=0).max():.2g} dB from bin to bin."
        )
    else:
        low, median, high = np.quantile(decibels[0], (0.1, 0.5, 0.9), axis=0)
        axes.fill_between(at, low, high, alpha=0.2, linewidth=0)
        axes.plot(at, median, linewidth=1)
        axes.set_xlabel("frequency (cycles per sample)")
        axes.set_ylabel("gain (dB)")
        caption = (
            f"Gain of the filters of {placed.name}, the same for every sequence: the median over "
            f"its {decibels.shape[1]} channels (line), and where four of five channels lie."
        )
    return _write(figure, path, caption)


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=150)
    return figure, figure.add_subplot()


def _evenly(length: int, most: int) -> np.ndarray:
    """Return at most `most` indices below `length`, evenly spread."""
    return np.unique(np.linspace(0, length - 1, min(length, most)).astype(int))


def _write(figure: Figure, path: Path, caption: str) -> Path:
    wrapped = textwrap.fill(caption, 96, break_on_hyphens=False)
    below = 0.17 + 0.03 * wrapped.count("\n")
    figure.subplots_adjust(left=0.12, right=0.87, top=0.97, bottom=below)
    figure.text(0.03, 0.02, wrapped, fontsize=7, va="bottom")
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix[1:])
    replace_file(path, drawn.getvalue())
    path.with_suffix(".txt").write_text(wrapped + "\n", encoding="utf-8")
    return path

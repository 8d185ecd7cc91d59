"""What others have published about the questions of our studies, to set beside what we measured.

Facts as printed there, not results of ours; none has been run here.
"""

from __future__ import annotations

from dataclasses import dataclass

NOT_FEASIBLE = "not feasible"
NOT_REPORTED = "not reported"

_FOCUS = "Lutati, Zimerman, Wolf 2023 (arXiv 2305.14952)"


_PIXELS: dict[str, tuple[float, float]] = {
    "Focus": (99.7, 98.8),
    "Focus-H (no hypernetwork)": (98.9, 98.0),
    "S4": (99.6, 98.7),
    "Transformer": (98.9, 97.9),
}
"""In order, permuted."""
_PIXELS_NOTE = "Six layers of width 512; budget not published."


@dataclass(frozen=True, kw_only=True)
class PublishedTable:
    """A published table, as printed."""

    title: str
    """What it measures, with the unit."""
    source: str
    """Where it was published."""
    settings: tuple[str, ...]
    """Its columns: comparisons of our study, where they have the same name."""
    values: dict[str, tuple[float | str, ...]]
    """Its rows: for each system a figure per setting, or why there is none."""
    note: str
    """What a reader must know before comparing."""

    def __post_init__(self) -> None:
        for system, figures in self.values.items():
            if len(figures) != len(self.settings):
                raise ValueError(
                    f"values must have {len(self.settings)} figures for {system}; got "
                    f"{len(figures)}."
                )


PUBLISHED: dict[str, tuple[PublishedTable, ...]] = {
    "table1": (
        PublishedTable(
            title="Associative recall, test accuracy in %, vocabulary 30",
            source=f"{_FOCUS}, Table 1",
            settings=("30", "1024", "8192", "32768", "65536"),
            values={
                "Focus": (100.0, 100.0, 100.0, 100.0, 100.0),
                "Focus-H (no hypernetwork)": (100.0, 98.0, 85.3, 34.6, 28.0),
                "Hyena": (100.0, 100.0, 100.0, 100.0, 100.0),
                "FlashTransformer": (100.0, 95.0, NOT_REPORTED, 32.4, 26.7),
                "Transformer": (100.0, 100.0, NOT_FEASIBLE, NOT_FEASIBLE, NOT_FEASIBLE),
            },
            note=(
                "Trained on 2000 fixed sequences. The published filter sees later input of its "
                "bin. The figures of FlashTransformer at 32K and 64K are those of Poli et al. "
                "2023, Table 4.2, for 30K and 64K."
            ),
        ),
    ),
    "table2": (
        PublishedTable(
            title="Bits per character, test",
            source=f"{_FOCUS}, Table 2",
            settings=("enwik8", "text8"),
            values={
                "Focus, 22M": (0.94, 0.98),
                "Focus-H, 21M": (1.06, 1.10),
                "Mega, 39M": (1.02, NOT_REPORTED),
                "Transformer-XL, 277M": (0.99, 1.08),
                "GPT-2, 1542M": (0.94, 0.98),
            },
            note=(
                "Other texts, sizes and budgets than ours: not to be compared figure by figure. "
                "The published filter sees later input of its bin, so its figures need a strictly "
                "causal model to confirm them. GPT-2's are without training on the data set."
            ),
        ),
    ),
    "table4": (
        PublishedTable(
            title="Sequential MNIST, test accuracy in %",
            source=f"{_FOCUS}, Table 4",
            settings=("in-order",),
            values={system: figures[:1] for system, figures in _PIXELS.items()},
            note=_PIXELS_NOTE,
        ),
    ),
    "permuted": (
        PublishedTable(
            title="Sequential MNIST in a fixed random order, test accuracy in %",
            source=f"{_FOCUS}, Table 4",
            settings=("permuted",),
            values={system: figures[1:] for system, figures in _PIXELS.items()},
            note=f"{_PIXELS_NOTE} Permutations differ by paper.",
        ),
    ),
    "table5": (
        PublishedTable(
            title="Inference at 1024 tokens, as multiples of the Transformer's",
            source=f"{_FOCUS}, Table 5",
            settings=("time", "peak memory"),
            values={
                "S4": (1.58, 0.43),
                "Mega": (1.49, 0.57),
                "Focus": (1.75, 0.38),
            },
            note=(
                "Of inference; ours are training steps of one sequence, beside a Transformer that "
                "does not keep its matrix of attention."
            ),
        ),
    ),
}
"""Published tables by the study that asks the same."""

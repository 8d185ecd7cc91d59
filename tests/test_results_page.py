"""Facts about the page Results, which is written by hand: its figures are those of the files."""

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import pytest

ROOT = Path(__file__).parents[1]
SECTIONS = dict(
    section.split("\n", 1)
    for section in re.split(r"^## ", (ROOT / "docs/results.md").read_text(), flags=re.M)[1:]
)
WITH_TABLES = [
    title
    for title, text in SECTIONS.items()
    if "\n|" in text and title != "Beside the paper"  # published figures, and some of the others
]
NOT_RESULTS = ("configuration", "environments", "comparisons", "curve")
"""Parts of a file in which no figure of a table stands."""
FIGURE = re.compile(r"(?<![\w.,-])(\d+\.\d+|\d{1,3}(?:,\d{3})+|\d{4,})(?![\w-]|[.,]\d)")
"""Numbers with decimals or of more than three digits: what is shorter is anywhere."""


def numbers_in(values) -> Iterator[float]:
    if isinstance(values, dict):
        values = [value for name, value in values.items() if name not in NOT_RESULTS]
    if isinstance(values, list):
        for value in values:
            yield from numbers_in(value)
    elif isinstance(values, int | float) and not isinstance(values, bool):
        yield values


def printed(value: float) -> Iterator[str]:
    """How a page may print a number: as it is, a share in percent, a thousand or million of it."""
    yield from (f"{value:,.0f}", f"{value:.0f}", f"{value:.2f}", f"{value:.3f}")
    yield from (f"{value / 1e3:,.1f}", f"{value / 1e3:.0f}", f"{value / 1e3:,.0f}")
    yield f"{value / 2**20:,.0f}"
    if abs(value) <= 1:
        yield from (f"{100 * value:.1f}", f"{100 * value:.2f}")


@pytest.mark.parametrize("title", WITH_TABLES)
def test_every_figure_of_a_table_stands_in_a_file_that_its_section_names(title):
    text = SECTIONS[title]
    files = [ROOT / "benchmarks/results" / name for name in re.findall(r"`([\w-]+\.json)`", text)]
    known = {
        form
        for file in files
        for value in numbers_in(json.loads(file.read_text()))
        for form in printed(value)
    }
    lines = text.splitlines()
    for line, next_line in pairwise(lines):
        if line.startswith("|") and not next_line.startswith("|---"):  # no header
            _, name, cells = line.split("|", 2)
            found = FIGURE.findall(cells)
            unknown = [figure for figure in found if figure not in known]
            if len(unknown) == 1:  # a mean that no file holds, of the others in its row
                others = [float(each.replace(",", "")) for each in found if each not in unknown]
                mean = fmean(others or [0.0])
                unknown = [figure for figure in unknown if figure != f"{mean:.1f}"]
            assert not unknown, f"{unknown} of {name} in none of {[file.name for file in files]}"


def test_every_figure_of_the_readme_stands_on_one_of_the_two_pages_of_results():
    pages = [(ROOT / "docs" / name).read_text() for name in ("results.md", "performance.md")]
    known = {figure for page in pages for figure in FIGURE.findall(page)}
    readme = (ROOT / "README.md").read_text().split("\n## Results\n")[1].split("\n## ")[0]
    tables = "\n".join(line for line in readme.splitlines() if line.startswith("|"))
    figures = FIGURE.findall(re.sub(r"[\d.]+ M\b", "", tables))  # millions of parameters, rounded
    assert len(figures) > 30
    assert not set(figures) - known

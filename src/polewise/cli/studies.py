"""The commands for questions: run a study, and report what came out."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import Positional, arg

from polewise.recipes.studies import (
    STUDIES,
    Results,
    Size,
    Study,
    build_study,
    question,
    read_results,
    run_study,
)
from polewise.replace_file import replace_file
from polewise.training.errors import explained_saving

_RESULTS = Path("benchmarks/results")


def study(
    name: Annotated[Positional[str], arg(metavar="NAME")] = "",
    size: Size = "cpu",
    only: str = "*",
    max_hours: float | None = None,
    jobs: int = 1,
    out: Path | None = None,
    list: bool = False,  # noqa: A002
) -> int:
    """Run what is missing of a study; without NAME, list the studies.

    A study trains several systems on equal terms: first each at every rate of one grid, then at
    its best rate with further seeds. Ctrl-C saves; the same command goes on. The results file is
    rewritten after every run. `accelerate launch -m polewise study NAME` trains each run on
    all GPUs; --jobs trains several runs side by side, each on a GPU or a core of its own.

    For example:
      polewise study
      polewise study table1 --jobs 2 --max-hours 1
      polewise study table2 --size gpu --jobs 8
      polewise study table1 --only "*/focus/*" --list

    Args:
        name: A study.
        size: cpu takes at most three hours on two cores, gpu as much as a GPU is worth.
        only: Runs whose name matches this pattern. A whole name runs that one run, whether or not
            its rate is the best.
        max_hours: Stop after so many hours, saving the run in progress.
        jobs: Runs side by side, one thread each. Budgets in steps do not mind a busy machine;
            budgets in seconds need a core for every job, and nothing else running.
        out: Folder for runs and results; None keeps runs in runs/studies and results in
            benchmarks/results.
        list: Say what there is and what is done, and run nothing.
    """
    if not name:
        for each in STUDIES:
            print(f"{each:12} {question(each)}")
        return 0
    chosen = build_study(name, size)
    called = f"{name}-{size}"
    runs = (out or Path("runs/studies")) / called
    results = (out or _RESULTS) / f"study-{called}.json"
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"out must be a folder; {out} is none.")
    if list:
        return _list(chosen, only, Results(chosen, results))
    outcome = run_study(
        chosen,
        out=runs,
        results=results,
        only=only,
        max_hours=max_hours,
        jobs=jobs,
        console=Console(),
    )
    print(f"{outcome.status}: {outcome.num_done} runs done, {outcome.num_left} left")
    if outcome.results.exists():
        print(f"results are in {outcome.results}")
    for failed in outcome.failed:
        print(f"broke off, the same command goes on with it: {failed}")
    return outcome.exit_code


def report(
    results: Annotated[Positional[tuple[Path, ...]], arg(metavar="RESULTS")] = (),
    out: Path = Path("report.html"),
    docs: bool = False,
) -> int:
    """Write a page about studies: tables and figures in one HTML file that loads nothing.

    For example:
      polewise report
      polewise report benchmarks/results/study-table1-cpu.json --out table1.html
      polewise report --docs

    Args:
        results: Results files of studies; none takes all in benchmarks/results.
        out: The page to write.
        docs: Write docs/studies.md and its figures instead, in a checkout of Polewise.
    """
    from polewise.analysis import render_html, render_markdown, study_section

    paths = results or tuple(sorted(_RESULTS.glob("study-*.json")))
    if not paths:
        raise ValueError(f"results must be given; there is no {_RESULTS}/study-*.json here.")
    studies = [read_results(path) for path in paths]
    if not docs:
        if out.is_dir() or not out.parent.is_dir():
            raise ValueError(f"out must be a file in a folder that is there; got {out}.")
        with explained_saving("the page", out, then="give the command again"):
            replace_file(out, render_html(studies))
        print(f"written to {out}")
        return 0
    page = Path("docs/studies.md")
    if len({path.stem for path in paths}) < len(paths):
        raise ValueError("results must have names of their own, for their figures have them too.")
    if not page.parent.is_dir():
        raise ValueError("docs must be written in a checkout of Polewise; there is no folder docs.")
    sections, figures = [study_section(study) for study in studies], []
    for path, section in zip(paths, sections, strict=True):
        names = [f"figures/{path.stem}-{number}.svg" for number in range(len(section.figures))]
        figures.append(names)
        for left in page.parent.glob(f"figures/{path.stem}-*.svg"):  # of a page with more of them
            if left.stem.removeprefix(f"{path.stem}-").isdecimal():
                left.unlink()
        for name, (svg, _) in zip(names, section.figures, strict=True):
            replace_file(page.parent / name, svg)
    replace_file(page, render_markdown(sections, figures))
    print(f"written to {page}")
    return 0


def _list(study: Study, only: str, results: Results) -> int:
    """Print every run whose rate is known, and what it measured."""
    study.require_match(only)
    print(study.question)
    measured = results.measured()
    done = [trial for trial in study.trials() if trial.name in measured]
    for trial in [*done, *study.open_trials(measured)]:
        if fnmatchcase(trial.name, only):
            value = f"{measured[trial.name].value:.4g}" if trial.name in measured else "to do"
            print(f"  {trial.name:64} {value}")
    print(f"{len(done)} of {study.num_trials} runs are done", end="")
    hours = study.total_seconds
    print("" if hours is None else f"; all take about {hours / 3600:.1f} core hours")
    return 0

"""Facts about reports of studies: what they say, and that they need nothing else."""

import copy
from html.parser import HTMLParser
from pathlib import Path

import pytest

from polewise.analysis import PUBLISHED, PublishedTable, render_html, render_markdown, study_section
from polewise.analysis.study_summary import format_measure, summarize
from polewise.recipes.studies import read_results

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"

ENVIRONMENT = {
    "python": "3.11.7",
    "versions": {"torch": "2.13.0"},
    "git_commit": "0123456789abcdef",
    "processor": "x86_64",
    "num_cores": 2,
    "num_threads": 1,
    "gpus": [],
}


def row(system, rate, seed, accuracy, comparison="30", **changes):
    values = {
        "run": f"{comparison}/{system}/rate-{rate:g}-seed-{seed}",
        "comparison": comparison,
        "system": system,
        "learning_rate": rate,
        "seed": seed,
        "share": 1.0,
        "status": "done",
        "parameters": 145704,
        "state_bytes": 43312,
        "steps": 200,
        "cpu_seconds": 61.0,
        "peak_memory_bytes": 300_000_000,
        "metrics": {"accuracy": accuracy, "loss": 1.0},
        "test": None,
        "curve": [
            {"step": 100, "seconds": 1.0, "accuracy": accuracy / 2},
            {"step": 200, "seconds": 2.0, "accuracy": accuracy},
        ],
        "environment": ENVIRONMENT,
        "command": f"polewise study table1 --only '{comparison}/{system}'",
    }
    return values | changes


def study(*rows, **changes):
    comparison = {
        "name": "30",
        "note": "A window of 32 tokens can reach <67 %>.",
        "headline": "accuracy",
        "higher_is_better": True,
        "systems": ["attention", "focus", "mega"],
        "learning_rates": [0.001, 0.01],
        "num_seeds": 2,
        "grid_share": 1.0,
        "max_steps": 200,
        "max_seconds": None,
        "stop_at": 1.0,
    }
    return {
        "study": "table1",
        "size": "cpu",
        "question": "Does it recall?",
        "comparisons": [comparison | changes],
        "rows": list(rows),
    }


FOCUS = (row("focus", 0.001, 0, 0.98), row("focus", 0.01, 0, 0.5), row("focus", 0.001, 1, 1.0))


def table_of(values):
    table = study_section(values).parts[0].table
    return {line[0]: dict(zip(table.header, line, strict=True)) for line in table.rows}


def test_a_figure_is_the_mean_over_seeds_at_the_best_rate_with_lowest_and_highest():
    cells = table_of(study(*FOCUS))["focus"]
    assert cells["accuracy"] == "99.0 % (98.0 % to 100.0 %)"
    assert cells["best rate"] == "0.001"
    assert cells["missing"] == ""
    assert (cells["parameters"], cells["state"], cells["memory"]) == (
        "145,704",
        "43.3 kB",
        "300 MB",
    )


def test_what_is_not_all_does_not_read_as_all():
    figures = [format_measure("accuracy", value) for value in (1.0, 0.9996, 0.99996, 0.5)]
    assert figures == ["100.0 %", "99.96 %", "99.996 %", "50.0 %"]


def test_the_best_rate_of_a_loss_is_that_of_the_lowest():
    values = study(*FOCUS, higher_is_better=False)
    (focus, *_) = summarize(values["comparisons"][0], values["rows"])
    assert focus.learning_rate == 0.01


def test_what_is_missing_is_said_and_what_was_never_run_has_no_figure():
    cells = table_of(study(*FOCUS, row("mega", 0.01, 0, 0.25)))
    assert cells["mega"]["accuracy"] == "25.0 %"
    assert cells["mega"]["missing"] == "1 of 2 rates, 1 of 2 seeds"
    assert cells["attention"]["accuracy"] == ""
    assert cells["attention"]["missing"] == "2 of 2 rates"
    assert list(cells) == ["focus", "mega", "attention"]  # best first, those without runs last
    assert "4 of 9 runs are done" in study_section(study(*FOCUS, FOCUS[0])).facts[0]


def test_seeds_are_missing_of_the_finalists_alone():
    rows = [row(name, rate, 0, 0.9) for name in ("focus", "mega") for rate in (0.001, 0.01)]
    rows.append(row("focus", 0.001, 1, 0.1))  # what comes later does not change who they are
    values = study(*rows, num_finalists=1)
    assert {name: cells["missing"] for name, cells in table_of(values).items()} == {
        "focus": "",
        "mega": "",
        "attention": "2 of 2 rates",
    }
    assert "5 of 7 runs are done" in study_section(values).facts[0]


def test_seeds_of_a_former_finalist_stand_in_for_nothing():
    names = ("focus", "mega", "attention")
    rows = [row(name, rate, 0, 0.8) for name in names for rate in (0.001, 0.01)]
    rows += [row("focus", 0.001, 0, 0.9), row("mega", 0.001, 1, 0.7)]  # 7 runs, but not those
    del rows[0]
    values = study(*rows, num_finalists=1)
    assert table_of(values)["focus"]["missing"] == "1 of 2 seeds"
    assert study_section(values).facts[0].startswith("7 runs are done; the last column")
    values = study(*rows, row("focus", 0.001, 1, 0.9), num_finalists=1)
    assert study_section(values).facts[0] == "All 8 runs are done."


def test_a_seed_that_diverged_is_told_and_comes_after_those_that_did_not():
    rows = [row("focus", rate, 0, 0.9) for rate in (0.001, 0.01)]
    rows += [row("focus", 0.001, 1, 0, status="diverged", metrics=None)]
    rows += [row("mega", rate, seed, 0.5) for rate in (0.001, 0.01) for seed in (0, 1)]
    cells = table_of(study(*rows))
    assert cells["focus"]["accuracy"] == "90.0 %; 1 of 2 seeds diverged"
    assert cells["focus"]["missing"] == ""
    assert list(cells) == ["mega", "focus", "attention"]


def test_a_system_that_diverged_at_every_rate_says_so():
    rows = [row("focus", rate, 0, 0, status="diverged", metrics=None) for rate in (0.001, 0.01)]
    cells = table_of(study(*rows))["focus"]
    assert (cells["accuracy"], cells["missing"]) == ("diverged", "")


def test_runs_of_a_short_grid_choose_the_rate_and_are_no_results():
    short = [
        row("focus", rate, 0, accuracy, share=0.1) for rate, accuracy in ((0.001, 0.9), (0.01, 0.8))
    ]
    whole = row("focus", 0.001, 0, 0.95)
    cells = table_of(study(*short, whole, grid_share=0.1))["focus"]
    assert cells["accuracy"] == "95.0 %"
    assert cells["missing"] == "1 of 2 seeds"


def test_a_whole_run_at_a_rate_that_the_short_ones_did_not_choose_is_shown_as_such():
    short = [row("focus", rate, 0, 0.9 - rate, share=0.1) for rate in (0.001, 0.01)]
    whole = [row("focus", rate, 0, accuracy) for rate, accuracy in ((0.001, 0.7), (0.01, 0.95))]
    early = row("mega", 0.01, 0, 0.5)  # its rates were never tried
    values = study(*short, *whole, early, grid_share=0.1, num_seeds=1)
    table = study_section(values).parts[0].table
    shown = [tuple(line[i] for i in (0, 2, 3, -1)) for line in table.rows]
    assert shown == [
        ("focus", "(0.01)", "95.0 %", ""),
        ("focus", "0.001", "70.0 %", ""),
        ("mega", "(0.01)", "50.0 %", ""),
        ("attention", "", "", "2 of 2 rates"),
        ("mega", "", "", "2 of 2 rates"),
    ]


@pytest.mark.parametrize("path", sorted(RESULTS.glob("study-*.json")), ids=lambda path: path.stem)
def test_no_whole_run_of_a_committed_study_is_left_out_of_its_tables(path):
    values = read_results(path)
    for comparison in values["comparisons"]:
        shown = {run["run"] for each in summarize(comparison, values["rows"]) for run in each.runs}
        rates = {each.system: each.grid for each in summarize(comparison, values["rows"])}
        for run in values["rows"]:
            if run["comparison"] == comparison["name"] and run["share"] == 1:
                tried = (
                    comparison["grid_share"] == 1 and run["learning_rate"] in rates[run["system"]]
                )
                assert run["run"] in shown or tried


def test_the_page_of_studies_is_of_the_committed_files():
    paths = sorted(RESULTS.glob("study-*.json"))
    sections = [study_section(read_results(path)) for path in paths]
    figures = [
        [f"figures/{path.stem}-{number}.svg" for number in range(len(section.figures))]
        for path, section in zip(paths, sections, strict=True)
    ]
    page = Path(__file__).parents[2] / "docs" / "studies.md"
    assert render_markdown(sections, figures) == page.read_text()  # `polewise report --docs`


def test_figures_on_test_data_stand_beside_those_that_chose():
    tested = row("focus", 0.001, 0, 0.98, test={"accuracy": 0.91})
    assert table_of(study(tested))["focus"]["on test"] == "91.0 %"
    assert "on test" not in table_of(study(*FOCUS))["focus"]


def test_further_metrics_have_columns_and_the_loss_has_none():
    metrics = {"accuracy": 0.5, "loss": 1.0, "accuracy_of_64_pairs": 0.25}
    cells = table_of(study(row("focus", 0.001, 0, 0.5, metrics=metrics)))["focus"]
    assert cells["accuracy of 64 pairs"] == "25.0 %"
    assert "loss" not in cells


class Parsed(HTMLParser):
    """Tags that are open, those that were seen, and everything that is loaded or said."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.links, self.said = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.links += [
            value
            for name, value in attributes
            if name in ("src", "href", "xlink:href") and not value.startswith("#")
        ]

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in ("meta", "br"):
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.said.append(data)


def test_the_html_report_is_one_well_formed_page_that_loads_nothing():
    parsed = Parsed(render_html([study(*FOCUS, row("mega", 0.01, 0, 0.5))]))
    assert parsed.open == []
    assert parsed.links == []
    assert parsed.seen.count("svg") == 3  # learning curves; costs; published beside ours
    assert parsed.seen.count("table") == 2
    said = " ".join(parsed.said)
    assert "can reach <67 %>." in said  # escaped
    assert "99.0 % (98.0 % to 100.0 %)" in said
    assert "polewise study table1 --only '30/focus'" in said
    assert "not feasible" in said


def test_a_study_of_cost_shows_what_steps_take_against_length_and_not_what_was_learned():
    speeds = {"512": (2e4, 3e4), "2048": (1e4, 4e4)}
    rows = [
        row(system, 0.01, 0, 0.0, comparison=length, positions_per_second=speed)
        for length, pair in speeds.items()
        for system, speed in zip(("attention", "focus"), pair, strict=True)
    ]
    values = study(*rows)
    values["comparisons"] = [
        values["comparisons"][0]
        | {"name": length, "learning_rates": [0.01], "num_seeds": 1, "subject": "cost"}
        for length in speeds
    ]
    values |= {"study": "of cost"}
    section = study_section(values)
    ((figure, caption),) = section.figures
    assert "Against the length of a sequence" in caption
    for label in ("time a position (µs)", "peak memory", "state when streaming", ">length<"):
        assert label in figure
    for part in section.parts:
        assert not {"accuracy", "best rate", "on test"} & set(part.table.header)
        assert [cells[0] for cells in part.table.rows][:2] == ["focus", "attention"]  # the faster


def test_the_same_results_give_the_same_page():
    assert render_html([study(*FOCUS)]) == render_html([copy.deepcopy(study(*FOCUS))])


def test_a_study_without_runs_has_a_page_without_figures():
    parsed = Parsed(render_html([study()]))
    assert "svg" not in parsed.seen
    assert parsed.seen.count("table") == 1  # the published one
    said = " ".join(parsed.said)
    assert "0 of 9 runs are done" in said
    assert "Nothing of it has been run yet. To run: attention, focus, mega." in said


def test_the_page_of_the_documentation_says_that_it_is_generated_and_shows_the_same():
    section = study_section(study(*FOCUS))
    text = render_markdown([section], [["figures/a.svg", "figures/b.svg"]])
    assert text.startswith("<!-- Generated by `polewise report --docs`")
    assert "| focus | 145,704 | 0.001 | 99.0 % (98.0 % to 100.0 %) | 200 | 61 |" in text
    assert "](figures/a.svg)" in text
    widths = {}
    for line in text.splitlines():
        if line.startswith("|"):
            widths.setdefault(line.count("|"), []).append(line)
    assert set(widths) == {6 + 1, 9 + 1}  # published: 6 columns; ours: 9, none of them empty


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_tables_name_their_source_and_their_caveats(name):
    for table in PUBLISHED[name]:
        assert "Lutati" in table.source
        assert table.note.endswith(".")


def test_a_published_table_with_a_figure_missing_is_refused():
    with pytest.raises(ValueError, match="values must have 2 figures for Focus; got 1"):
        PublishedTable(title="", source="", settings=("a", "b"), values={"Focus": (1.0,)}, note="")


def test_the_mean_over_comparisons_is_of_the_figures_on_test():
    rows = [
        row("focus", 0.01, 0, 0.9, comparison=name, test={"accuracy": accuracy})
        for name, accuracy in (("without-a", 0.5), ("without-b", 0.7), ("official", 1.0))
    ]
    values = study(*rows)
    values["mean_over"] = "without-*"
    values["comparisons"] = [
        values["comparisons"][0] | {"name": name, "learning_rates": [0.01], "num_seeds": 1}
        for name in ("official", "without-a", "without-b", "without-c")
    ]
    part = next(each for each in study_section(values).parts if each.title == "Mean over without-*")
    assert part.table.rows == (("focus", "60.0 % (50.0 % to 70.0 %)", "2 of 3"),)
    assert not any("Mean" in each.title for each in study_section(study(*rows)).parts)

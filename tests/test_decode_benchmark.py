"""The decode benchmark runs at a small size, and what it finds there holds at any size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "decode.py"


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    output = tmp_path_factory.mktemp("decode") / "report.json"
    ran = subprocess.run(
        [sys.executable, SCRIPT, "--small", "--output", output],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout, json.loads(output.read_text())


def test_both_models_have_as_many_parameters(done):
    counts = done[1]["contexts"]["parameters"]
    assert counts["GPT-2"] == pytest.approx(counts["Focus"], rel=0.01)


def test_a_state_stays_as_large_as_it_was_and_keys_and_values_grow(done):
    early, late = (row["cache_bytes"] for row in done[1]["contexts"]["rows"])
    assert late["Focus"] == early["Focus"]
    assert late["GPT-2"] == 2 * early["GPT-2"]
    assert len({row["state_bytes"] for row in done[1]["positions"]["rows"]}) == 1


def test_single_steps_give_the_logits_and_the_state_of_one_pass(done):
    equality = done[1]["equality"]
    assert 0 < equality["difference"] < 1e-4
    assert equality["difference"] == max(equality["difference_by_tenth"])
    assert equality["state_difference"] < 1e-4
    for row in done[1]["positions"]["rows"]:
        assert 0 < row["difference_from_float64"] < 1e-4


def test_the_tables_show_every_row(done):
    text, report = done
    for part, name in (("contexts", "context"), ("positions", "position")):
        for row in report[part]["rows"]:
            assert f"| {row[name]:,} |" in text


def test_a_wrong_size_is_refused(monkeypatch, capsys):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import decode

    with pytest.raises(SystemExit, match=r"^2$"):
        decode.main(["--tokens", "0"])
    assert "--tokens must be at least 1; got 0." in capsys.readouterr().err

"""The filter benchmark runs at a small size, part by part into one file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "filters.py"


def run(part, output):
    small = ["--batch", "1", "--length", "256", "--dim", "16", "--rounds", "1"]
    ran = subprocess.run(
        [sys.executable, SCRIPT, "--only", part, *small, "--output", output],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(output.read_text())


def test_filtered_products_are_measured_beside_chunks_and_attention(tmp_path):
    rows = run("products", tmp_path / "filters.json")["products"]["rows"]
    assert {(row["batch"], row["length"]) for row in rows} == {(1, 16), (1, 128), (1, 1024)}
    assert {row["system"].split(",")[0] for row in rows} == {
        "associative_filter", "associative_filter(backend='torch')", "gated_filter",
        "gated_filter(backend='torch')", "SDPA",
    }  # fmt: skip
    assert all(row["median_ms"] > 0 for row in rows)


def test_a_part_is_added_to_what_the_file_has(tmp_path):
    output = tmp_path / "filters.json"
    first = run("size", output)
    both = run("calls", output)
    assert both["size"] == first["size"]
    assert all(row["median_us"] > 0 for row in both["calls"]["rows"])
    names = [row["name"] for row in both["size"]["systems"]]
    assert {"x.clone()", "normal_form_filter, forward", "FFT in each bin, circular"} <= set(names)


def test_the_long_convolution_is_measured_whole_and_in_a_stream(tmp_path):
    rows = run("convolution", tmp_path / "filters.json")["convolution"]["rows"]
    assert {row["system"].split(",")[0] for row in rows} == {
        "FFT of twice the length", "long_conv", "long_conv(spectrum=)",
        *(f"a stream in segments of {steps}" for steps in (1, 16, 256)),
    }  # fmt: skip
    assert all(row["us_a_step"] > 0 for row in rows)

"""The GPU benchmark runs end to end, by Triton's interpreter where there is no GPU."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed (it runs on Linux)")


def run(*arguments, interpret):
    command = [sys.executable, "benchmarks/gpu.py", "--smoke", *arguments]
    environment = {**os.environ, "TRITON_INTERPRET": interpret}
    return subprocess.run(
        command, cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_every_section_of_the_gpu_benchmark_runs(tmp_path):
    timed = ["filters", "products", "block", "segments"]
    output, sections = tmp_path / "gpu.json", ["checks", *timed]
    ran = run("--rounds", "1", "--output", str(output), "--sections", *sections, interpret="1")
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert "left out" not in ran.stdout
    report = json.loads(output.read_text())
    assert list(report["sections"]) == sections
    assert all(row["ok"] for row in report["sections"]["checks"])
    for name in timed:
        assert all(row["ms"] > 0 for row in report["sections"][name])
        assert f"## {name}" in output.with_suffix(".md").read_text()


def test_a_check_that_cannot_be_made_or_gives_nan_has_failed(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    gpu_checks = importlib.import_module("gpu_checks")

    def broken():
        raise RuntimeError("no kernel")

    row = gpu_checks.verdict("broken", 1.0, broken)
    assert not row["ok"]
    assert row["error"] == "RuntimeError: no kernel"
    nan, one = torch.tensor([torch.nan, 1.0]), torch.ones(2)
    assert gpu_checks.relative_error(nan, one) == float("inf")
    assert gpu_checks.relative_error(one, one) == 0


def test_a_smoke_run_says_that_it_wants_the_interpreter():
    ran = run(interpret="0")
    assert ran.returncode != 0
    assert "TRITON_INTERPRET=1" in ran.stderr

"""Facts about training on several processes, launched as a user launches it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

OPTIONS = [
    "train", "text", "--source", "embedded", "--length", "64", "--batch-size", "4",
    "--hidden-size", "16", "--num-layers", "2", "--max-steps", "4", "--eval-bytes", "2000",
    "--set", "chunk_length=16", "--set", "bin_length=16", "--set", "windows=2",
]  # fmt: skip


def run(processes, *words):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), "-m", "polewise.cli", *words],
        capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def weights(folder):
    return load_file(folder / "model-last" / "model.safetensors")


def test_a_run_that_splits_its_sequences_learns_what_one_process_learns(tmp_path):
    for name, processes, more in (("one", 1, []), ("split", 2, ["--split-sequence"])):
        done = run(processes, *OPTIONS, *more, "--out", str(tmp_path / name))
        assert done.returncode == 0, done.stderr
    one, split = weights(tmp_path / "one"), weights(tmp_path / "split")
    for name, value in one.items():
        torch.testing.assert_close(split[name], value, rtol=1e-3, atol=1e-4)


def test_sequences_that_cannot_be_split_are_refused_before_a_folder_is_made(tmp_path):
    more = ["--split-sequence", "--set", "chunk_length=64", "--out", str(tmp_path / "run")]
    done = run(2, *OPTIONS, *more)
    assert done.returncode != 0
    assert "multiple of processes x chunk_length = 128; got 64" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("processes", [1, 4])
def test_a_run_of_two_processes_goes_on_with_one_and_with_four(tmp_path, processes):
    done = run(2, *OPTIONS, "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    done = run(processes, "resume", str(tmp_path / "run"), "--max-steps", "6")
    assert done.returncode == 0, done.stderr
    assert "finished after 6 steps" in done.stdout

"""The examples run, with no arguments, in seconds, and show what they claim."""

from __future__ import annotations

import re
import subprocess
import sys
import wave
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, *words, stdin=b""):
    return subprocess.run(
        [sys.executable, EXAMPLES / name, *words],
        input=stdin,
        capture_output=True,
        check=False,
    )


def bits_per_byte(done):
    assert done.returncode == 0, done.stderr.decode()
    return float(re.findall(r"([\d.]+) bits per byte", done.stdout.decode())[-1])


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_explains_itself(path):
    done = run(path.name, "--help")
    assert done.returncode == 0
    assert f"python examples/{path.name}" in done.stdout.decode()


@pytest.mark.parametrize("form", ["normal", "direct"])
def test_a_live_stream_is_filtered_as_in_one_pass(form, tmp_path):
    words = ["--form", form, "--seconds", "2", "--wav", str(tmp_path / "wah.wav")]
    done = run("filter_a_live_stream.py", *words)
    assert done.returncode == 0, done.stderr.decode()
    text = done.stdout.decode()
    assert float(re.search(r"one pass: (\S+) of", text)[1]) < 1e-5
    assert "latency per block: median" in text
    with wave.open(str(tmp_path / "wah.wav")) as file:
        assert file.getnframes() == 2 * file.getframerate()


def test_a_live_stream_needs_no_arguments():
    assert run("filter_a_live_stream.py").returncode == 0


def test_a_byte_model_reads_a_pipe_and_the_segments_do_not_matter():
    text = b"It was the best of times, it was the worst of times. " * 40
    name = "byte_model_over_a_pipe.py"
    figures = [
        bits_per_byte(run(name, "--segment-length", length, stdin=text))
        for length in ("100000", "37")
    ]
    assert figures[0] == pytest.approx(figures[1], abs=2e-4)
    assert 6 < figures[0] < 20


def test_a_byte_model_is_read_from_a_folder(tmp_path):
    from polewise import PolewiseConfig, PolewiseForCausalLM

    config = PolewiseConfig(hidden_size=8, num_hidden_layers=1, intermediate_size=8)
    model = PolewiseForCausalLM(config)
    model.lm_head.weight.data.zero_()  # knows nothing: 8 bits a byte, exactly
    model.save_pretrained(tmp_path)
    assert bits_per_byte(run("byte_model_over_a_pipe.py", tmp_path, stdin=b"abc")) == 8


@pytest.mark.parametrize(
    ("words", "stdin", "answer"),
    [
        ([], b"", "at least one byte"),
        (["nowhere"], b"a", "model must be a folder"),
        (["--every", "0"], b"a", "--every must be at least 1"),
    ],
)
def test_a_byte_model_explains_a_mistake(words, stdin, answer):
    done = run("byte_model_over_a_pipe.py", *words, stdin=stdin)
    assert done.returncode != 0
    assert answer in done.stderr.decode()
    assert b"Traceback" not in done.stderr

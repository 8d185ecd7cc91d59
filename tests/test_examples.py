"""The examples run, with no arguments, in seconds, and show what they claim."""

from __future__ import annotations

import io
import re
import runpy
import subprocess
import sys
import wave
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


class Done(NamedTuple):
    """What is left of an example that was run."""

    returncode: int
    stdout: str
    stderr: str


def run(name, *words, stdin=b""):
    """Run an example as from a shell, in this process: its imports would take the most time."""
    out, said, code = io.StringIO(), io.StringIO(), None
    with (
        mock.patch.object(sys, "argv", [str(EXAMPLES / name), *map(str, words)]),
        mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin))),
        redirect_stdout(out),
        redirect_stderr(said),
    ):
        try:
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        except SystemExit as end:
            code = end.code
    if isinstance(code, str):
        return Done(1, out.getvalue(), said.getvalue() + code)
    return Done(code or 0, out.getvalue(), said.getvalue())


def bits_per_byte(done):
    assert done.returncode == 0, done.stderr
    return float(re.findall(r"([\d.]+) bits per byte", done.stdout)[-1])


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_explains_itself(path):
    done = run(path.name, "--help")
    assert done.returncode == 0
    assert f"python examples/{path.name}" in done.stdout


@pytest.mark.parametrize("form", ["normal", "direct"])
def test_a_live_stream_is_filtered_as_in_one_pass(form, tmp_path):
    words = ["--form", form, "--seconds", "2", "--wav", str(tmp_path / "wah.wav")]
    done = run("filter_a_live_stream.py", *words)
    assert done.returncode == 0, done.stderr
    assert float(re.search(r"one pass: (\S+) of", done.stdout)[1]) < 1e-5
    assert "latency per block: median" in done.stdout
    with wave.open(str(tmp_path / "wah.wav")) as file:
        assert file.getnframes() == 2 * file.getframerate()


def test_a_live_stream_needs_no_arguments():
    subprocess.run([sys.executable, EXAMPLES / "filter_a_live_stream.py"], check=True)


def test_a_byte_model_reads_a_pipe_and_the_segments_do_not_matter():
    text = b"It was the best of times, it was the worst of times. " * 40
    name = "byte_model_over_a_pipe.py"
    command = [sys.executable, EXAMPLES / name, "--segment-length", "37"]
    done = subprocess.run(command, input=text, capture_output=True, check=False)
    piped = Done(done.returncode, done.stdout.decode(), done.stderr.decode())
    whole = run(name, "--segment-length", "100000", stdin=text)
    figures = [bits_per_byte(whole), bits_per_byte(piped)]
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
    assert answer in done.stderr
    assert "Traceback" not in done.stderr

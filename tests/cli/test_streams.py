"""Facts about `polewise stream` and `polewise generate` with a state."""

import io
import math
import re
import signal
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional

from polewise import states
from polewise.cli import main, streams
from polewise.models.byte_stream import start_of_stream
from polewise.models.generation import Generation
from polewise.training import RunFolder

TEXT = "It was the best of times, it was the wörst of times. ".encode() * 8
PROGRAM = [sys.executable, "-m", "polewise"]


@pytest.fixture
def pipe_in(monkeypatch):
    """A function that puts a readable file, or bytes, in the place of standard input."""

    def put(data):
        file = io.BytesIO(data) if isinstance(data, bytes) else data
        monkeypatch.setattr("sys.stdin", type("Stdin", (), {"buffer": file}))

    return put


class StoppedByHand(io.BytesIO):
    """Ctrl-C comes once everything was read."""

    def read1(self, size=-1):
        data = super().read1(size)
        if not data:
            raise KeyboardInterrupt
        return data


def figures(text):
    """What each line says: (bytes, bits per byte)."""
    found = re.findall(r"([\d,]+) bytes, ([\d.]+) bits per byte", text)
    return [(int(count.replace(",", "")), float(bits)) for count, bits in found]


@torch.no_grad()
def defined_costs(run, text):
    """Every byte's bits, from the logits of one pass in float64."""
    ids = torch.tensor([list(text)])
    logits = RunFolder(run).load_model().double()(ids).logits[0, :-1]
    nats = functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    return torch.cat([nats.new_tensor([math.log(256)]), nats]) / math.log(2)


@pytest.mark.parametrize("length", ["1", "7", "64", "100000"])
def test_the_figure_is_that_of_one_pass_for_any_segment_length(text_run, length, pipe_in, capsys):
    pipe_in(TEXT)
    assert main(["stream", text_run, "--segment-length", length, "--every", "100"]) == 0
    costs = defined_costs(text_run, TEXT)
    wanted = [*range(100, len(TEXT), 100), len(TEXT)]
    printed = capsys.readouterr().out
    assert [count for count, _ in figures(printed)] == wanted
    for count, bits in figures(printed):
        assert bits == pytest.approx(float(costs[:count].mean()), abs=1e-4)
    assert printed.splitlines()[-1].startswith("in all ")


def test_the_first_byte_of_all_costs_8_bits(text_run, pipe_in, capsys):
    pipe_in(b"x")
    assert main(["stream", text_run]) == 0
    assert figures(capsys.readouterr().out) == [(1, 8.0)]


def test_a_file_is_read_as_a_pipe_is(text_run, pipe_in, tmp_path, capsys):
    (tmp_path / "text").write_bytes(TEXT)
    pipe_in(TEXT)
    for words in ([], ["--input", "text"]):
        assert main(["stream", text_run, *words]) == 0
    first, second = figures(capsys.readouterr().out)
    assert first == second


def test_with_a_state_two_calls_cost_what_one_costs(text_run, pipe_in, capsys):
    for part in (TEXT[:150], TEXT[150:]):
        pipe_in(part)
        assert main(["stream", text_run, "--state", "memory"]) == 0
    bits = sum(count * each for count, each in figures(capsys.readouterr().out))
    assert bits == pytest.approx(float(defined_costs(text_run, TEXT).sum()), abs=0.1)


def test_ctrl_c_prints_the_figure_so_far_and_keeps_the_state(text_run, pipe_in, capsys):
    pipe_in(StoppedByHand(TEXT[:150]))
    assert main(["stream", text_run, "--state", "memory"]) == 130
    printed = capsys.readouterr().out
    assert printed.startswith("stopped after 150 bytes")
    pipe_in(TEXT[150:])
    assert main(["stream", text_run, "--state", "memory"]) == 0
    both = figures(printed) + figures(capsys.readouterr().out)
    bits = sum(count * each for count, each in both)
    assert bits == pytest.approx(float(defined_costs(text_run, TEXT).sum()), abs=0.1)


@pytest.mark.parametrize(
    ("signals", "code"),
    [([signal.SIGINT], 130), ([signal.SIGTERM], 143), ([signal.SIGTERM, signal.SIGTERM], 143)],
    ids=["Ctrl-C", "SIGTERM", "SIGTERM twice"],
)
def test_a_signal_reaches_a_process_that_waits_for_its_pipe(text_run, tmp_path, signals, code):
    words = ["stream", text_run, "--every", "10", "--state", "memory"]
    process = subprocess.Popen(
        [*PROGRAM, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # What a shell has put into the background ignores Ctrl-C, and so do its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    process.stdin.write(TEXT[:10])
    process.stdin.flush()
    assert process.stdout.readline().startswith(b"so far 10 bytes")
    for number in signals:
        process.send_signal(number)
    out, err = process.communicate(timeout=600)
    assert process.returncode == code, err
    assert out.startswith(b"stopped after 10 bytes")
    assert b"Traceback" not in err
    assert (tmp_path / "memory").is_file()


def test_an_endless_pipe_ends_with_the_reader_of_its_lines(text_run, tmp_path):
    command = " ".join([*PROGRAM, "stream", text_run, "--every", "1000", "--state", "memory"])
    script = f"yes | {command} | head -n 2; echo ${{PIPESTATUS[1]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True, timeout=600)
    lines = done.stdout.decode().splitlines()
    assert [line.split(",")[0] for line in lines[:2]] == ["so far 1", "so far 2"]
    assert lines[2:] == ["0"]
    assert done.stderr == b""
    assert (tmp_path / "memory").is_file()


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--input", "nothing.txt"], "input must be a file that can be read; nothing.txt"),
        (["--input", "."], "input must be a file that can be read; ."),
        (["--segment-length", "0"], "segment_length must be an integer of at least 1; got 0."),
        (["--every", "0"], "every must be an integer of at least 1; got 0."),
        (["--state", "nowhere/memory"], "state must be a file in a folder that can be written"),
        (["--state", "."], "state must be a file in a folder that can be written"),
        (["--state", "memory"], "input must hold at least one byte; got none."),
    ],
)
def test_a_mistake_is_one_line_and_creates_nothing(
    text_run, words, answer, pipe_in, tmp_path, capsys
):
    pipe_in(b"")
    assert main(["stream", text_run, *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert answer in printed.err
    assert printed.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_another_task_is_refused(tmp_path, capsys):
    words = ["--length", "6", "--mixer", "attention", "--hidden-size", "8", "--max-steps", "1"]
    assert main(["train", "recall", *words, "--out", "recall"]) == 0
    capsys.readouterr()
    for command, *more in (["stream"], ["serve"], ["generate", "--prompt", "a"]):
        assert main([command, "recall", *more]) == 2
        assert "run must be a text run; recall is one of recall." in capsys.readouterr().err


@pytest.mark.parametrize("command", [["stream"], ["generate", "--prompt", "a"]])
def test_the_state_of_another_model_is_refused_and_kept(
    command, text_run, make_run, pipe_in, tmp_path, capsys
):
    pipe_in(TEXT)
    assert main(["stream", text_run, "--state", "memory"]) == 0
    kept = (tmp_path / "memory").read_bytes()
    capsys.readouterr()
    others = {
        "other weights made memory": make_run(seed=1),
        "memory": make_run(hidden_size=16),
        "tensors of this model": make_run(mixer="mamba2", mixer_options={}),
    }
    for answer, other in others.items():
        pipe_in(TEXT)
        assert main([command[0], other, *command[1:], "--state", "memory"]) == 2
        error = capsys.readouterr().err
        assert "state must be one of this model" in error
        assert answer in error
        assert error.count("\n") == 1
        assert (tmp_path / "memory").read_bytes() == kept


@pytest.mark.parametrize("bad", ["nan", "inf"])
def test_a_state_that_holds_no_numbers_is_refused(bad, text_run, tmp_path, capsys):
    command = ["generate", text_run, "--prompt", "a", "--max-new-tokens", "2", "--state", "memory"]
    assert main(command) == 0
    tensors = load_file(tmp_path / "memory")
    name = next(name for name, each in tensors.items() if each.is_floating_point())
    with safe_open(tmp_path / "memory", "pt") as file:
        metadata = file.metadata()
    tensors[name].fill_(float(bad))
    save_file(tensors, tmp_path / "memory", metadata)
    assert main(command) == 2
    assert "state must hold finite numbers; memory holds NaN" in capsys.readouterr().err


def test_a_file_that_is_no_state_is_refused_and_kept(text_run, tmp_path, capsys):
    (tmp_path / "memory").write_text("dear diary")
    assert main(["generate", text_run, "--prompt", "a", "--state", "memory"]) == 2
    assert "state must be one of this model" in capsys.readouterr().err
    assert (tmp_path / "memory").read_text() == "dear diary"


def generate(run, *words):
    assert main(["generate", run, "--temperature", "0", *words]) == 0


def same_state(path, other):
    mine, theirs = load_file(path), load_file(other)
    return mine.keys() == theirs.keys() and all(
        torch.allclose(mine[name], theirs[name], atol=1e-5) for name in mine
    )


def test_text_written_in_two_calls_is_the_text_of_one(text_run):
    generate(text_run, "--prompt", "It ", "--max-new-tokens", "20", "--state", "one")
    generate(text_run, "--prompt", "It ", "--max-new-tokens", "13", "--state", "two")
    assert not same_state("one", "two")
    generate(text_run, "--prompt", "", "--max-new-tokens", "7", "--state", "two")
    assert same_state("one", "two")


def test_a_prompt_is_read_after_what_the_state_has_read(text_run, pipe_in):
    pipe_in(TEXT)
    assert main(["stream", text_run, "--state", "memory"]) == 0
    more = ["--max-new-tokens", "5"]
    generate(text_run, "--prompt", "Then ", *more, "--state", "memory")
    generate(text_run, "--prompt", TEXT.decode() + "Then ", *more, "--state", "all")
    assert same_state("memory", "all")


def test_ctrl_c_keeps_what_was_written(text_run, monkeypatch, capsys):
    class Stopped(Generation):
        def __next__(self):
            if self._left == 17:
                raise KeyboardInterrupt
            return super().__next__()

    def draw(*args, **options):
        tokens = generate_tokens(*args, **options)
        tokens.__class__ = Stopped
        return tokens

    generate_tokens = streams.draw
    generate(text_run, "--prompt", "It ", "--max-new-tokens", "3", "--state", "three")
    monkeypatch.setattr(streams, "draw", draw)
    words = ["--prompt", "It ", "--max-new-tokens", "20", "--temperature", "0"]
    assert main(["generate", text_run, *words, "--state", "stopped"]) == 130
    written = capsys.readouterr()
    assert written.out.endswith("\n")
    assert not written.err
    assert same_state("three", "stopped")


def test_an_empty_prompt_needs_a_state(text_run, capsys):
    for words in ([], ["--state", "memory"]):
        assert main(["generate", text_run, "--prompt", "", *words]) == 2
        assert "prompt must not be empty" in capsys.readouterr().err


def test_a_prompt_that_was_not_begun_is_not_forgotten(text_run, pipe_in, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Generation, "__next__", stop)
        words = ["--prompt", "It was ", "--state", "memory"]
        assert main(["generate", text_run, *words]) == 130
    for data, words in ((b"the best", ["--state", "memory"]), (b"It was the best", [])):
        pipe_in(data)
        assert main(["stream", text_run, *words]) == 0
    first, both = figures(capsys.readouterr().out)
    prompt = float(defined_costs(text_run, b"It was ").sum())
    assert first[0] * first[1] + prompt == pytest.approx(both[0] * both[1], abs=0.01)


def test_a_state_that_cannot_be_written_fails(text_run, tmp_path, capsys, little_room):
    with little_room():
        assert main(["generate", text_run, "--prompt", "a", "--state", "memory"]) == 1
    assert "the state must be written to memory, and could not be" in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if "memory" in path.name]


def test_without_standard_input_a_file_must_be_named(text_run, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", None)
    assert main(["stream", text_run]) == 2
    assert "input must be given: standard input is closed." in capsys.readouterr().err


def test_a_prompt_is_the_bytes_that_the_shell_gave(text_run, tmp_path):
    """Also where they are no text."""
    words = f"{' '.join(PROGRAM)} generate {text_run} --max-new-tokens 1 --state memory"
    script = words + " --prompt $'caf\\xe9 '"
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    assert done.stdout.startswith("caf� ".encode())
    model = RunFolder(text_run).load_model()
    like = start_of_stream(model), torch.zeros(1, 32, dtype=torch.uint8)
    kept, _ = states.load(tmp_path / "memory", like=like)
    _, expected = model.step(torch.tensor([list(b"caf\xe9 ")]))
    for ours, wanted in zip(states.tensors(kept.model), states.tensors(expected), strict=True):
        torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("seed", ["-1", "99999999999999999999"])
def test_a_seed_that_is_none_is_refused(text_run, seed, capsys):
    assert main(["generate", text_run, "--prompt", "a", "--seed", seed]) == 2
    assert "seed must be between 0 and 2**63 - 1" in capsys.readouterr().err

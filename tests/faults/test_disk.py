"""A folder that cannot be written: said clearly, nothing lost, and training goes on if told to."""

import ctypes
import errno
import io
import os
import resource
import shutil
import signal
import sys
from contextlib import contextmanager

import pytest
import torch
from benchmarks.faults.processes import started
from rich.console import Console
from tests.faults.runs import (
    TASK,
    RecallWith,
    checkpoints_in,
    have_equal_parameters,
    quiet,
    small_run,
    task_of,
)

from polewise.training import RunFolder, SaveError, resume, train
from polewise.training.checkpoint import verify_checkpoint
from polewise.training.display import Display

WRITES = ("open", "os.mkdir", "os.rename", "os.truncate")
_countdown: list = []


def _fail_when_due(event, arguments):
    """Let the so manieth write under a folder find the disk full. Hooks cannot be taken back."""
    if not _countdown or event not in WRITES:
        return
    if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
        return
    if str(arguments[0]).startswith(_countdown[0]):
        _countdown[1] -= 1
        if _countdown[1] <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))


sys.addaudithook(_fail_when_due)


@contextmanager
def disk_full_after(folder, number):
    """Every write to the folder fails, from the so manieth on."""
    _countdown[:] = [str(folder), number]
    try:
        yield
    finally:
        _countdown.clear()


class ThenFull(RecallWith):
    """The disk is full from the fifth step on, a number of writes later."""

    folder = ""
    writes = 1

    def change(self, step, batch):
        if step == 4:
            _countdown[:] = [self.folder, self.writes]
        return batch


@pytest.fixture(autouse=True)
def the_disk_is_emptied():
    yield
    _countdown.clear()


@pytest.mark.parametrize("writes", range(1, 13))
def test_a_disk_that_is_full_from_any_write_on_costs_no_checkpoint(writes, tmp_path, finished_run):
    folder = tmp_path / "run"
    task = task_of(ThenFull, folder=str(folder), writes=writes)
    with pytest.raises(SaveError, match=r"No space left on device; free some space") as caught:
        train(small_run(task), folder, console=quiet())
    assert str(folder) in str(caught.value)
    _countdown.clear()
    assert "step-4" in checkpoints_in(folder)
    assert not [path for path in folder.rglob(".*") if path.name.endswith(".partial")]
    verify_checkpoint(folder / "checkpoints/step-4")
    if "step-6" not in checkpoints_in(folder):
        resume(folder, console=quiet())
    assert have_equal_parameters(folder, finished_run)


def test_told_to_continue_a_run_trains_on_and_says_so_once(tmp_path, finished_run):
    folder = tmp_path / "run"

    class FullForAWhile(ThenFull):
        def change(self, step, batch):
            if step == 2:
                _countdown[:] = [self.folder, 1]
            if step == 5:
                _countdown.clear()
            return batch

    console = quiet()
    run = small_run(task_of(FullForAWhile, folder=str(folder)), on_save_error="continue")
    assert train(run, folder, console=console).step == 6
    said = console.file.getvalue()
    assert said.count("the log must be written") == 1
    assert "Training goes on." in said
    steps = [r["step"] for r in RunFolder(folder).read_metrics() if r["kind"] == "train"]
    assert steps == [1, 2, 6]
    assert checkpoints_in(folder) == ["step-2", "step-6"]
    assert have_equal_parameters(folder, finished_run)


def test_told_to_continue_a_run_rolls_back_though_its_log_cannot_be_cut(tmp_path):
    folder = tmp_path / "run"

    class Trouble(RecallWith):
        def change(self, step, batch):
            if step == 6:
                _countdown[:] = [str(folder), 1]
            if step == 8:
                _countdown.clear()
            return batch | {"poison": torch.tensor(float("nan") if 4 <= step <= 6 else 1.0)}

        def loss(self, logits, batch):
            return super().loss(logits, batch) * batch["poison"]

    run = small_run(
        Trouble(**TASK), on_save_error="continue", on_skip_limit="roll_back", max_steps=10
    )
    assert train(run, folder, console=quiet()).status == "finished"
    lines = RunFolder(folder).read_metrics()
    assert lines[-1]["step"] == 10
    assert resume(folder, max_steps=12, console=quiet()).status == "finished"
    assert RunFolder(folder).read_metrics()[: len(lines)] == lines


def test_the_last_checkpoint_must_be_written_even_then(tmp_path):
    folder = tmp_path / "run"
    run = small_run(task_of(ThenFull, folder=str(folder)), on_save_error="continue")
    with pytest.raises(SaveError, match="the model must be written"):
        train(run, folder, console=quiet())


@pytest.mark.parametrize("most_bytes", [0, 100, 2_000, 6_000])
def test_a_limit_on_the_size_of_files_is_named_with_its_remedy(most_bytes, run_copy):
    before = {path: path.read_bytes() for path in run_copy.rglob("step-*/*")}
    with started(_resume_with_small_files, str(run_copy), most_bytes) as process:
        process.join()
        assert process.exitcode == 42
    for path, content in before.items():
        assert path.read_bytes() == content
    assert checkpoints_in(run_copy) == ["step-4", "step-6"]


def _resume_with_small_files(folder, most_bytes):
    """The answer is an exit code: 42 for the right SaveError."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))
    try:
        resume(folder, max_steps=8, console=Console(quiet=True))
    except SaveError as error:
        os._exit(42 if "raise it (`ulimit -f`)" in str(error) else 1)


def test_a_really_full_file_system_keeps_the_checkpoints_that_fit(tmp_path, finished_run):
    with started(_train_on_a_small_disk, str(tmp_path), str(finished_run)) as process:
        process.join()
    if process.exitcode == 77:
        pytest.skip("no file system can be mounted here")
    assert process.exitcode == 42


def _mount(source, target, kind, flags, options):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), target.encode(), kind and kind.encode(), flags, options):
        os._exit(77)


def _own_mounts():
    """Mounts of this process alone, without privileges where the kernel allows it."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts, new_user, private = 0x00020000, 0x10000000, 0x44000
    user, group = os.getuid(), os.getgid()
    if libc.unshare(new_mounts):
        if libc.unshare(new_mounts | new_user):
            os._exit(77)
        for name, line in (("setgroups", "deny"), ("uid_map", user), ("gid_map", group)):
            text = line if name == "setgroups" else f"{line} {line} 1"
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    _mount("none", "/", None, private, None)


def _train_on_a_small_disk(folder, finished):
    _own_mounts()
    _mount("small", folder, "tmpfs", 0, b"size=160k")
    run = os.path.join(folder, "run")
    try:
        train(small_run(max_steps=400, checkpoint_every=1, keep_checkpoints=100), run,
              console=Console(quiet=True))  # fmt: skip
    except SaveError as error:
        if "free some space there" not in str(error):
            os._exit(1)
        kept = sorted(os.listdir(os.path.join(run, "checkpoints")))
        for name in kept:
            verify_checkpoint(RunFolder(run).checkpoints_path / name)
        os._exit(42 if len(kept) >= 2 else 2)


def test_a_read_only_file_system_is_refused_before_the_first_step(tmp_path, run_copy):
    with started(_resume_read_only, str(run_copy)) as process:
        process.join()
    if process.exitcode == 77:
        pytest.skip("no file system can be mounted here")
    assert process.exitcode == 42


def _resume_read_only(folder):
    _own_mounts()
    bind, remount_read_only = 0x1000, 0x1000 | 0x20 | 0x1
    _mount(folder, folder, None, bind, None)
    _mount(folder, folder, None, remount_read_only, None)
    answers = []
    for call in (
        lambda: resume(folder, max_steps=8, console=Console(quiet=True)),
        lambda: train(small_run(), os.path.join(folder, "new"), console=Console(quiet=True)),
    ):
        try:
            call()
        except ValueError as error:
            answers.append("can be written" in str(error) and "Read-only" in str(error))
    os._exit(42 if answers == [True, True] else 1)


class Vanishing(RecallWith):
    """Someone moves the run folder away."""

    folder = ""

    def change(self, step, batch):
        if step == 2:
            shutil.move(self.folder, f"{self.folder}-moved")
        return batch


@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_a_folder_that_vanishes_is_named_and_not_made_anew(policy, tmp_path):
    folder = tmp_path / "run"
    run = small_run(task_of(Vanishing, folder=str(folder)), on_save_error=policy, log_every=100)
    with pytest.raises(SaveError, match="the folder has gone; put it back") as caught:
        train(run, folder, console=quiet())
    assert str(folder) in str(caught.value)
    assert not folder.exists()
    assert checkpoints_in(tmp_path / "run-moved") == ["step-2"]


@pytest.mark.parametrize("kind", ["file", "in a file", "long name"])
def test_a_place_where_no_folder_can_be_is_refused_before_anything_is_made(kind, tmp_path):
    (tmp_path / "file").write_text("mine")
    out = {
        "file": tmp_path / "file",
        "in a file": tmp_path / "file" / "run",
        "long name": tmp_path / ("a" * 300),
    }[kind]
    with pytest.raises(ValueError, match="out must be a"):
        train(small_run(), out, console=quiet())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_line_of_the_log_is_written_whole_or_not_at_all(run_copy, monkeypatch):
    folder = RunFolder(run_copy)
    before = folder.metrics_path.read_bytes()
    real_open = type(folder.metrics_path).open

    class Cut(io.FileIO):
        def write(self, line):
            return super().write(line[: len(line) // 2])

    monkeypatch.setattr(
        type(folder.metrics_path), "open", lambda path, *_, **__: Cut(str(path), "ab")
    )
    with pytest.raises(OSError, match="No space left"):
        folder.append_metrics({"kind": "train", "step": 7})
    monkeypatch.setattr(type(folder.metrics_path), "open", real_open)
    assert folder.metrics_path.read_bytes() == before


@pytest.mark.parametrize("error", [BrokenPipeError, OSError])
def test_output_that_nobody_reads_any_more_ends_no_run(error, tmp_path, monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise error

    monkeypatch.setattr("os.dup2", lambda *_: None)  # rich would close the tests' output
    display = Display("recall", Console(file=Closed()))
    with display:
        display.note("one")
        display.note("two")
    assert train(small_run(), tmp_path / "run", console=Console(file=Closed())).step == 6

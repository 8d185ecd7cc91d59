"""Facts about compiled loops: their machine code on disk, on which no call depends, and threads."""

import errno
import importlib.util
import subprocess
import sys

import pytest
import torch
from numba.core.caching import IndexDataCacheFile

from polewise.ops import _compiled

SOURCE = """
def add(left, right):
    return left + right
"""


@pytest.fixture
def loop(tmp_path, monkeypatch):
    """A loop in a file of its own, whose machine code goes beside it."""
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    return loop_of(tmp_path, SOURCE)


def loop_of(folder, source):
    path = folder / "loop.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("loop", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.add


def was_loaded(loop):
    """Whether a process that begins now finds the machine code; checks what it computes."""
    dispatcher = _compiled.compiled(loop)
    assert dispatcher(1, 2) == 3
    return bool(dispatcher.stats.cache_hits)


def test_the_second_process_finds_what_the_first_compiled(loop):
    assert [was_loaded(loop) for _ in range(3)] == [False, True, True]


def test_a_change_in_any_file_of_loops_compiles_all_anew(loop, tmp_path, monkeypatch):
    assert not was_loaded(loop)
    monkeypatch.setattr(_compiled, "_sources", lambda: "another digest")
    assert [was_loaded(loop) for _ in range(2)] == [False, True]
    assert len(list((tmp_path / "__pycache__").glob("*.nbc"))) == 1  # the former one is gone


@pytest.mark.parametrize("pattern", ["*.nbi", "*.nbc"])
@pytest.mark.parametrize("left", [0, 20])
def test_a_file_that_was_cut_short_is_made_anew(loop, tmp_path, pattern, left):
    assert not was_loaded(loop)
    (path,) = (tmp_path / "__pycache__").glob(pattern)
    path.write_bytes(path.read_bytes()[:left])
    assert [was_loaded(loop) for _ in range(2)] == [False, True]


def test_a_process_that_is_killed_while_it_writes_leaves_no_code_of_another_version(
    loop, tmp_path, monkeypatch
):
    assert not was_loaded(loop)
    edited = loop_of(tmp_path, SOURCE.replace("left + right", "left - right - 0"))

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(IndexDataCacheFile, "_save_data", killed)
        with pytest.raises(KeyboardInterrupt):
            _compiled.compiled(edited)(3, 1)
    assert _compiled.compiled(edited)(3, 1) == 2


def test_on_a_full_disk_loops_are_compiled_once_a_process(loop, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(IndexDataCacheFile, "_open_for_write", full)
    assert [was_loaded(loop) for _ in range(2)] == [False, False]


def test_without_any_folder_to_keep_it_in_too(monkeypatch):
    local = {}
    exec(SOURCE, local)  # of no file, so there is no place beside it
    assert [was_loaded(local["add"]) for _ in range(2)] == [False, False]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_as_many_threads_share_the_units_as_torch_says(threads):
    shares, before = [], torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        _compiled.run_units(lambda _, first, stop: shares.append((first, stop)), 12, 4096, 64)
    finally:
        torch.set_num_threads(before)
    assert len(shares) == threads
    assert sorted(unit for share in shares for unit in range(*share)) == list(range(12))


OUTLIVES = """
import threading, time
import torch
from polewise.ops import normal_form_filter

torch.set_num_threads(2)
x, poles = torch.ones(4, 1024, 64), torch.full((4, 1, 64), 0.5)
normal_form_filter(x, poles, poles, 1024)

def late():
    threading.main_thread().join()
    print(normal_form_filter(x, poles, poles, 1024)[0].shape)

threading.Thread(target=late).start()
"""


def test_a_thread_that_outlives_the_main_one_still_filters():
    process = subprocess.run(
        [sys.executable, "-c", OUTLIVES], capture_output=True, text=True, timeout=120, check=False
    )
    assert (process.stdout, process.stderr) == ("torch.Size([4, 1024, 64])\n", "")

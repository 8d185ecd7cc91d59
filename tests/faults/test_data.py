"""Data that is broken, huge, changing, or never comes: a clear answer, or correct work."""

import bz2
import gzip
import io
import itertools
import lzma
import os
import platform
import resource
import signal
import struct
import threading
import time
import zipfile
from dataclasses import dataclass

import pytest
import torch
from tests.faults.runs import TASK, RecallWith, have_equal_parameters, quiet, small_run

from polewise.tasks import ImagesTask, RecallTask, TextTask
from polewise.tasks.byte_source import open_bytes
from polewise.tasks.images import read_mnist
from polewise.training import StalledError, resume, train

TEXT = b"It was the best of times, it was the worst of times. " * 20


def text_task(path, **options):
    return TextTask(source=str(path), **({"length": 16, "batch_size": 2} | options))


def gzipped(content, level=9):
    return gzip.compress(content, level, mtime=0)  # the same bytes, and name of a test, always


def zipped(content=TEXT, names=("text",)):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, content)
    return packed.getvalue()


def changed(content, position, by=b"\xff\xff\xff\xff"):
    return content[:position] + by + content[position + len(by) :]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "it is empty"),
        ("short.txt", b"abc", "length must be less than the training part"),
        ("cut.gz", gzipped(TEXT)[:-20], "ended before the end-of-stream"),
        ("header.gz", b"no archive", "Not a gzipped file"),
        ("bits.gz", changed(gzipped(TEXT), 20), "source must be readable"),
        ("nothing.gz", gzipped(b""), "it is empty"),
        ("cut.zip", zipped()[:-30], "File is not a zip file"),
        ("bits.zip", changed(zipped(), 45), "source must be readable"),
        ("two.zip", zipped(names=("a", "b")), "an archive of one file and holds 2"),
        ("text.zst", TEXT, "unpack it and name the file"),
        ("none.zip", zipped(names=()), "an archive of one file and holds 0"),
        ("encrypted.zip", b"", "source must be readable"),
    ],
)
def test_a_text_that_cannot_be_read_is_explained(name, content, message, tmp_path):
    if name == "encrypted.zip":
        content = encrypted_zip()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        train(small_run(text_task(tmp_path / name)), tmp_path / "run", console=quiet())
    assert name in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "pack"),
    [("it.gz", gzipped), ("IT.GZ", gzipped), ("it.bz2", bz2.compress), ("it.xz", lzma.compress)],
)
def test_a_packed_text_is_unpacked_by_its_name(name, pack, tmp_path):
    (tmp_path / name).write_bytes(pack(TEXT))
    source = open_bytes(tmp_path / name)
    assert source.read(0, len(source)).tobytes() == TEXT


def encrypted_zip():
    """An archive whose member says that it has a password."""
    content = bytearray(zipped())
    content[6] |= 1  # the local header's flags, and the directory's
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


def test_a_manual_that_changed_is_that_of_another_python(tmp_path, monkeypatch):
    train(
        small_run(TextTask(length=8, batch_size=2, eval_bytes=40)),
        tmp_path / "run",
        console=quiet(),
    )
    monkeypatch.setattr("polewise.tasks.text._embedded_text", lambda: TEXT * 3000)
    with pytest.raises(ValueError, match=rf"manual of Python {platform.python_version()}: use"):
        resume(tmp_path / "run", max_steps=8, console=quiet())


def test_a_text_that_changed_in_its_middle_is_another(tmp_path):
    text = tmp_path / "text.txt"
    text.write_bytes(TEXT * 3000)
    train(small_run(text_task(text, eval_bytes=200)), tmp_path / "run", console=quiet())
    text.write_bytes(changed(text.read_bytes(), len(TEXT) * 1500))
    with pytest.raises(ValueError, match="it has changed since"):
        resume(tmp_path / "run", max_steps=8, console=quiet())


def test_bytes_that_are_no_text_are_learnt_like_others(tmp_path):
    (tmp_path / "noise").write_bytes(bytes(range(256)) * 4)
    batch = next(text_task(tmp_path / "noise", batch_size=64).train_batches(0))
    assert batch["inputs"].max() > 127


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "dangling link", "null", "long"])
def test_what_is_no_file_is_refused_at_once(kind, tmp_path):
    path = {
        "device": "/dev/zero",
        "null": "a\0b",
        "long": "a" * 5000,
    }.get(kind, str(tmp_path / "it"))
    if kind == "folder":
        os.mkdir(path)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "dangling link":
        os.symlink(tmp_path / "nowhere", path)
    with pytest.raises(ValueError, match=r"source must be .*"):
        text_task(path).prepare()


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("polewise.tasks.byte_source.MOST_UNPACKED_BYTES", 2**20)
    for name, pack in (("bomb.gz", gzipped), ("bomb.zip", zipped)):
        (tmp_path / name).write_bytes(pack(bytes(2**20 + 1)))
        with pytest.raises(ValueError, match="unpack it and name the file"):
            text_task(tmp_path / name).prepare()
        (tmp_path / name).write_bytes(pack(bytes(2**20)))
        text_task(tmp_path / name).prepare()


def test_ten_gigabytes_are_read_where_they_are_asked_for(tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(10 * 2**30)  # holes
        file.seek(9 * 2**30)
        file.write(b"x")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    task = text_task(path, eval_bytes=100)
    for batch in itertools.islice(task.train_batches(0), 20):
        assert batch["inputs"].shape == (2, 16)
    assert len(task.held_out_text()) == 100
    assert len(task.fingerprint()) == 64
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes


@pytest.mark.parametrize("how", ["cut", "grown", "rewritten"])
def test_a_text_that_changes_under_a_run_saves_it_and_stops(how, tmp_path):
    path = tmp_path / "text"
    path.write_bytes(TEXT)

    @dataclass(frozen=True, kw_only=True)
    class Changing(TextTask):
        def train_batches(self, seed, first_step=0):
            for step, batch in enumerate(super().train_batches(seed, first_step), first_step):
                if step == 2:
                    new = {"cut": TEXT[:50], "grown": TEXT * 2, "rewritten": TEXT[::-1]}[how]
                    path.write_bytes(new)
                    os.utime(path, ns=(0, 0))
                yield batch

    task = Changing(source=str(path), length=16, batch_size=2, eval_bytes=16)
    run = small_run(task, evaluate_every=100)
    with pytest.raises(ValueError, match="source must not change while it is read") as caught:
        train(run, tmp_path / "run", console=quiet())
    assert "saved at step 3" in str(caught.value)
    assert (tmp_path / "run/checkpoints/step-3").is_dir()
    with pytest.raises(ValueError, match=r"the data must be what .* began with"):
        resume(tmp_path / "run", console=quiet())
    path.write_bytes(TEXT)
    assert resume(tmp_path / "run", console=quiet()).status == "finished"


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_text_that_is_deleted_or_replaced_stays_as_it_was(how, tmp_path):
    path = tmp_path / "text"
    path.write_bytes(TEXT)
    task = text_task(path)
    batches = task.train_batches(0)
    first = next(batches)
    if how == "deleted":
        path.unlink()
    else:
        (tmp_path / "new").write_bytes(bytes(len(TEXT)))
        (tmp_path / "new").rename(path)
    assert next(batches)["inputs"].min() > 0
    assert torch.equal(next(task.train_batches(0))["inputs"], first["inputs"])


def idx(shape, fill=0, magic=None):
    header = magic or bytes([0, 0, 8, len(shape)])
    size = 1
    for side in shape:
        size *= side
    return header + struct.pack(f">{len(shape)}I", *shape) + bytes([fill]) * size


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (gzipped(idx((3, 28, 28)))[:-10], None, "complete idx file"),
        (changed(gzipped(idx((3, 28, 28))), 30), None, "complete idx file"),
        (gzipped(idx((3, 28, 28), magic=b"\0\0\x0d\x03")), None, "0 0 8 3; got 0 0 13 3"),
        (gzipped(idx((3, 784))), None, "0 0 8 3; got 0 0 8 2"),
        (gzipped(idx((3, 28, 28))[:-1]), None, "which is not what"),
        (gzipped(idx((3, 28, 28)) + b"\0"), None, "which is not what"),
        (gzipped(b""), None, "0 0 8 3; got"),
        (gzipped(b"\0\0\x08\x03" + b"\xff" * 12), None, "which is not what"),
        (b"", None, "0 0 8 3; got"),
        (gzipped(idx((3, 20, 20))), None, "images of 28 x 28"),
        (None, gzipped(idx((4,))), "3 images, .* has 4 labels"),
        (None, gzipped(idx((3,), fill=10)), "labels from 0 to 9; .*: 10"),
        (None, gzipped(bytes(100_000_001), 1), "more than 100,000,000 bytes"),
    ],
)
def test_an_idx_file_that_is_none_is_explained(images, labels, message, tmp_path):
    for name, content, shape in (("images", images, (3, 28, 28)), ("labels", labels, (3,))):
        good = gzipped(idx(shape))
        (tmp_path / f"{name}.gz").write_bytes(good if content is None else content)
    with pytest.raises(ValueError, match=message):
        read_mnist([tmp_path / "images.gz", tmp_path / "labels.gz"], slice(None))


def test_other_images_than_a_run_began_with_are_noticed(tmp_path, monkeypatch):
    (tmp_path / "mnist").mkdir()
    for kind, num in (("train", 55_008), ("t10k", 4)):
        for name, shape in (("images-idx3", (num, 28, 28)), ("labels-idx1", (num,))):
            packed = gzipped(idx(shape), 1)
            (tmp_path / f"mnist/{kind}-{name}-ubyte.gz").write_bytes(packed)
    monkeypatch.setenv("POLEWISE_DATA", str(tmp_path))
    before = ImagesTask(source="mnist").fingerprint()
    labels = idx((55_008,))[:-1] + b"\x01"
    (tmp_path / "mnist/train-labels-idx1-ubyte.gz").write_bytes(gzipped(labels, 1))
    assert ImagesTask(source="mnist").fingerprint() != before


class Stalling(RecallWith):
    """The third batch does not come until someone lets it."""

    def change(self, step, batch):
        if step == 2:
            released.wait()
        return batch


released = threading.Event()


@pytest.fixture(autouse=True)
def nothing_stalls_for_ever():
    released.clear()
    yield
    released.set()


def test_a_data_source_that_stalls_saves_the_run_and_ends_it(tmp_path, finished_run):
    begin = time.monotonic()
    with pytest.raises(StalledError, match=r"within 1 s .* saved at step 2"):
        train(small_run(Stalling(**TASK), data_timeout=1.0), tmp_path / "run", console=quiet())
    assert time.monotonic() - begin < 30
    assert (tmp_path / "run/checkpoints/step-2").is_dir()
    resume(tmp_path / "run", console=quiet())
    assert have_equal_parameters(tmp_path / "run", finished_run)


def test_a_source_has_its_time_for_every_batch_of_a_step(tmp_path):
    class Slow(RecallWith):
        def change(self, step, batch):
            time.sleep(0.3)
            return batch

    run = small_run(Slow(**TASK), data_timeout=1.0, accumulate=5, max_steps=1)
    assert train(run, tmp_path / "run", console=quiet()).status == "finished"


def test_ctrl_c_ends_the_wait_for_a_stalled_source(tmp_path):
    class Interrupted(Stalling):
        def change(self, step, batch):
            if step == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return super().change(step, batch)

    outcome = train(small_run(Interrupted(**TASK)), tmp_path / "run", console=quiet())
    assert (outcome.status, outcome.step) == ("interrupted", 2)


def test_a_source_that_ends_is_a_mistake_of_the_task(tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class Ending(RecallTask):
        def train_batches(self, seed, first_step=0):
            yield from itertools.islice(super().train_batches(seed, first_step), 2)

    with pytest.raises(ValueError, match="batches without end; it ended"):
        train(small_run(Ending(**TASK)), tmp_path / "run", console=quiet())


def test_a_source_that_fails_in_any_way_saves_the_run(tmp_path):
    class Failing(RecallWith):
        def change(self, step, batch):
            if step == 2:
                raise OSError("the network went away")
            return batch

    with pytest.raises(OSError, match="the network went away"):
        train(small_run(Failing(**TASK)), tmp_path / "run", console=quiet())
    assert (tmp_path / "run/checkpoints/step-2").is_dir()

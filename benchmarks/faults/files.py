"""Checkpoints, models, logs, texts and images that are mutated: an answer, or correct work."""

from __future__ import annotations

import gzip
import math
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.faults.configurations import require_one_answer
from benchmarks.faults.kills import KILLED_RUN
from rich.console import Console

from polewise.tasks import TextTask
from polewise.tasks.images import read_mnist
from polewise.training import RunFolder, build_model, train
from polewise.training.checkpoint import find_checkpoint, load_checkpoint
from polewise.training.manifest import MANIFEST, write_manifest
from polewise.training.optimizer import build_optimizer


def mutate(content: bytes, chance: random.Random) -> bytes:
    """Return the content with something wrong in it."""
    changed = bytearray(content)
    at = chance.randrange(len(changed)) if changed else 0
    size = chance.choice([1, 4, 64])
    what = chance.randrange(8)
    if what == 0 and changed:
        changed[at] ^= 1 << chance.randrange(8)
    elif what == 1:
        del changed[at:]
    elif what == 2:
        changed[at : at + size] = chance.randbytes(size)
    elif what == 3:
        changed[at : at + size] = bytes(size)
    elif what == 4:
        changed[at:at] = changed[at : at + size]
    elif what == 5:
        del changed[at : at + size]
    elif what == 6:
        changed += chance.randbytes(size)
    else:
        digits = [place for place, byte in enumerate(changed) if 48 <= byte <= 57]
        if digits:
            changed[chance.choice(digits)] = chance.choice(b"0123456789-e.")
    return bytes(changed)


def prepare_files(folder: Path) -> None:
    """Make everything that is going to be broken."""
    train(KILLED_RUN, folder / "run", console=Console(quiet=True))
    text = "It was the best of times, it was the worst of times. " * 20
    (folder / "text").mkdir()
    (folder / "text" / "plain.txt").write_text(text)
    (folder / "text" / "packed.gz").write_bytes(gzip.compress(text.encode()))
    with zipfile.ZipFile(folder / "text" / "packed.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("text", text)
    (folder / "mnist").mkdir()
    for name, sizes in (("images.gz", (20, 28, 28)), ("labels.gz", (20,))):
        header = bytes([0, 0, 8, len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes)
        content = header + bytes(number % 10 for number in range(math.prod(sizes)))
        (folder / "mnist" / name).write_bytes(gzip.compress(content))


def try_file(folder: Path, chance: random.Random) -> str:
    """Break one file, read it as a user's command would, put it back; return what came of it.

    Raises:
        AssertionError: a damaged checkpoint or model was taken for a good one.
        Exception: whatever is not documented.
    """
    readers: dict[str, Callable[[Path, bool], object]] = {
        "run/checkpoints/step-12/*": _read_checkpoint,
        "run/model/*": _read_model,
        "run/config.json": _read_config,
        "run/metrics.jsonl": _read_log,
        "text/*": _read_text,
        "mnist/*": _read_images,
    }
    pattern = chance.choice(list(readers))
    path = chance.choice(sorted(folder.glob(pattern)))
    before = path.read_bytes()
    content = mutate(before, chance)
    manifest = path.with_name(MANIFEST)
    # Sealed, the manifest agrees with what is broken: what reads the file itself must notice.
    seals = manifest.exists() and path != manifest and chance.random() < 0.5
    described = manifest.read_bytes() if seals else b""
    path.write_bytes(content)
    try:
        if seals:
            write_manifest(path.parent)
        readers[pattern](path, seals or content == before)
        return "read"
    except ValueError as error:
        require_one_answer(error)
        return "refused"
    finally:
        path.write_bytes(before)
        if seals:
            manifest.write_bytes(described)


def _read_checkpoint(path: Path, may_pass: bool) -> None:
    model = build_model(KILLED_RUN.task.spec, KILLED_RUN.model)
    optimizer = build_optimizer(model, KILLED_RUN.training)
    load_checkpoint(path.parent, model, optimizer)
    assert may_pass, f"{path.name} was changed and nobody noticed"
    found = find_checkpoint(path.parents[1], max_bytes=None, note=lambda _: None)
    assert found == path.parent


def _read_model(path: Path, may_pass: bool) -> None:
    RunFolder(path.parents[1]).load_model()
    assert may_pass, f"{path.name} was changed and nobody noticed"


def _read_config(path: Path, _: bool) -> None:
    RunFolder.open(path.parent).read_run()


def _read_log(path: Path, _: bool) -> None:
    for record in RunFolder(path.parent).read_metrics():
        assert isinstance(record["step"], int)


def _read_text(path: Path, _: bool) -> None:
    task = TextTask(source=str(path), length=16, batch_size=2)
    next(task.train_batches(0))
    for _batch in task.eval_batches():
        pass


def _read_images(path: Path, _: bool) -> None:
    pair = [path.with_name("images.gz"), path.with_name("labels.gz")]
    images = read_mnist(pair, slice(None))
    assert images.pixels.shape == (len(images.labels), 784)

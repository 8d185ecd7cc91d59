"""A checkpoint that is not what was written is passed over; a hostile one does nothing."""

import json
import os
import pickle
import shutil
import struct
import sys

import pytest
from tests.faults.runs import flip_bit, have_equal_parameters, quiet, small_run

from polewise.training import RunFolder, build_model, resume
from polewise.training.checkpoint import (
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
    verify_checkpoint,
)
from polewise.training.manifest import MANIFEST, write_manifest
from polewise.training.optimizer import build_optimizer
from polewise.training.progress import Progress

FILES = [
    "model.safetensors",
    "optimizer.safetensors",
    "random.safetensors",
    "progress.json",
    "manifest.json",
]


def found(folder):
    """The checkpoint that a resume would take, and what it says about the others."""
    notes = []
    path = find_checkpoint(folder / "checkpoints", max_bytes=10**8, note=notes.append)
    return path.name, notes


def fresh_model():
    run = small_run()
    return build_model(run.task.spec, run.model)


def load(checkpoint):
    """Load a checkpoint as a resume does."""
    model = fresh_model()
    load_checkpoint(checkpoint, model, build_optimizer(model, small_run().training))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_flipped_bit_in_any_file_is_named_and_the_checkpoint_before_is_used(
    name, place, run_copy
):
    path = run_copy / "checkpoints/step-6" / name
    position = {"first": 0, "middle": None, "last": path.stat().st_size - 2}[place]
    flip_bit(path, position)
    chosen, (note,) = found(run_copy)
    assert chosen == "step-4"
    assert "step-6" in note
    assert name in note


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_file_that_is_cut_short_is_named(name, kept, run_copy):
    path = run_copy / "checkpoints/step-6" / name
    os.truncate(path, int(path.stat().st_size * kept))
    chosen, (note,) = found(run_copy)
    assert chosen == "step-4"
    assert name in note


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_is_named(name, run_copy):
    (run_copy / "checkpoints/step-6" / name).unlink()
    chosen, (note,) = found(run_copy)
    assert chosen == "step-4"
    assert f"{name} is missing" in note


@pytest.mark.parametrize("name", [name for name in FILES if name != "random.safetensors"])
def test_files_of_two_steps_are_never_mixed(name, run_copy):
    shutil.copy(run_copy / "checkpoints/step-4" / name, run_copy / "checkpoints/step-6" / name)
    assert found(run_copy)[0] == "step-4"


def test_a_checkpoint_under_the_name_of_another_step_is_passed_over(run_copy):
    shutil.copytree(run_copy / "checkpoints/step-6", run_copy / "checkpoints/step-9")
    chosen, (note,) = found(run_copy)
    assert chosen == "step-6"
    assert "progress.json is of step 6" in note


def test_a_resume_from_before_the_damage_says_so_and_ends_the_same(run_copy, finished_run):
    flip_bit(run_copy / "checkpoints/step-6/optimizer.safetensors")
    console = quiet()
    outcome = resume(run_copy, console=console)
    assert outcome.step == 6
    assert "passed over" in console.file.getvalue()
    assert have_equal_parameters(run_copy, finished_run)
    verify_checkpoint(run_copy / "checkpoints/step-6")  # replaced by a good one


def test_with_every_checkpoint_damaged_a_run_never_begins_again_in_silence(run_copy):
    for name in ("step-4", "step-6"):
        flip_bit(run_copy / "checkpoints" / name / "model.safetensors")
    with pytest.raises(ValueError, match=r"all 2 in .* are damaged, the newest: .*step-6"):
        resume(run_copy, console=quiet())


def test_what_others_put_beside_the_checkpoints_is_neither_chosen_nor_deleted(run_copy):
    folder = run_copy / "checkpoints"
    (folder / "step-99").mkdir()
    (folder / "step-best").mkdir()
    (folder / "notes.txt").write_text("mine")
    (folder / ".step-8.partial").mkdir()
    chosen, (note,) = found(run_copy)
    assert chosen == "step-6"
    assert "manifest.json is missing" in note
    resume(run_copy, max_steps=8, console=quiet())
    left = sorted(path.name for path in folder.iterdir())
    assert left == ["notes.txt", "step-6", "step-8", "step-99", "step-best"]


def test_a_damaged_checkpoint_does_not_count_when_the_oldest_are_dropped(run_copy):
    folder = run_copy / "checkpoints"
    (folder / "step-1").mkdir()  # someone else's
    (folder / "step-1" / "notes.txt").write_text("mine")
    flip_bit(folder / "step-6" / "model.safetensors")
    save_checkpoint(folder, fresh_model(), {}, Progress(step=7), keep=2)
    left = sorted(path.name for path in folder.iterdir())
    assert left == ["step-1", "step-4", "step-6", "step-7"]


class Harm:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("sealed", [False, True])
def test_a_pickle_in_place_of_any_file_executes_nothing(name, sealed, run_copy, tmp_path):
    checkpoint = run_copy / "checkpoints/step-6"
    (checkpoint / name).write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
    if sealed and name != MANIFEST:
        write_manifest(checkpoint)
    with pytest.raises(ValueError, match="checkpoint must be complete"):
        load(checkpoint)
    shutil.copy(checkpoint / name, run_copy / "model" / name)
    (run_copy / "model/pytorch_model.bin").write_bytes((checkpoint / name).read_bytes())
    (run_copy / "model/model.safetensors").unlink()
    for _ in range(2):  # with the manifest, which misses a file, and without one
        with pytest.raises(ValueError, match="run must hold a complete model"):
            RunFolder(run_copy).load_model()
        (run_copy / "model" / MANIFEST).unlink(missing_ok=True)
    assert not (tmp_path / "harm").exists()


def safetensors_file(header: bytes, length: int | None = None, payload: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + payload


def entry(name, shape, begin, end):
    described = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    return {name: described}


@pytest.mark.parametrize(
    "content",
    [
        safetensors_file(b"{}", length=2**63),
        safetensors_file(b'{"a":' * 100_000),
        safetensors_file(json.dumps(entry("a", [2**40], 0, 2**42)).encode()),
        safetensors_file(
            json.dumps(entry("a", [2], 0, 8) | entry("b", [2], 4, 12)).encode(), payload=bytes(12)
        ),
        safetensors_file(json.dumps(entry("lm_head.weight", [1], 0, 4)).encode(), payload=bytes(4)),
    ],
    ids=["huge header", "deep header", "huge tensor", "overlap", "another shape"],
)
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_a_hostile_safetensors_file_is_refused(content, name, run_copy):
    checkpoint = run_copy / "checkpoints/step-6"
    (checkpoint / name).write_bytes(content)
    write_manifest(checkpoint)
    with pytest.raises(ValueError, match="checkpoint must be complete and of this model"):
        load(checkpoint)


@pytest.mark.parametrize("name", ["progress.json", "manifest.json"])
@pytest.mark.parametrize(
    "content",
    [b'{"a":' * 100_000, b"[" * 100_000, b"[]", b'{"step": NaN}', b"\xff\xfe", b"9" * 5_000],
    ids=["deep object", "deep list", "a list", "NaN", "not UTF-8", "a long number"],
)
def test_a_json_bomb_is_refused(name, content, run_copy):
    checkpoint = run_copy / "checkpoints/step-6"
    (checkpoint / name).write_bytes(content)
    if name != MANIFEST:
        write_manifest(checkpoint)
    with pytest.raises(ValueError, match="checkpoint must be complete"):
        load(checkpoint)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "..", "a/b", "a\0b", ""])
def test_a_manifest_that_points_elsewhere_is_refused(name, run_copy):
    from polewise.training import manifest

    checkpoint = run_copy / "checkpoints/step-6"
    described = json.loads((checkpoint / MANIFEST).read_text())
    described.pop("sha256")
    described["files"][name] = {"size": 0, "sha256": ""}
    described["sha256"] = manifest._hash_of(described)
    (checkpoint / MANIFEST).write_text(manifest._rendered(described))
    with pytest.raises(ValueError, match="which is no file of this folder"):
        verify_checkpoint(checkpoint)


def test_a_link_in_place_of_a_file_is_refused(run_copy, tmp_path):
    path = run_copy / "checkpoints/step-6/model.safetensors"
    shutil.move(path, tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"model\.safetensors is not a plain file"):
        verify_checkpoint(path.parent)


def test_a_file_too_large_for_the_model_is_refused_before_it_is_read(run_copy, monkeypatch):
    checkpoint = run_copy / "checkpoints/step-6"
    os.truncate(checkpoint / "optimizer.safetensors", 2**40)  # a terabyte of holes
    monkeypatch.setattr("polewise.training.manifest._hash_file", lambda path: "0" * 64)
    write_manifest(checkpoint)
    monkeypatch.setattr("polewise.training.manifest._hash_file", lambda path: sys.exit("read"))
    with pytest.raises(ValueError, match="those of this model have fewer"):
        load(checkpoint)


def test_a_flipped_bit_in_the_best_model_is_caught(run_copy):
    flip_bit(run_copy / "model/model.safetensors")
    with pytest.raises(ValueError, match=r"complete model; .*model\.safetensors is not what was"):
        RunFolder(run_copy).load_model()


def test_a_checkpoint_without_manifest_is_told_from_a_damaged_one(run_copy):
    (run_copy / "checkpoints/step-6" / MANIFEST).unlink()
    with pytest.raises(ValueError, match="from before checkpoints had one"):
        verify_checkpoint(run_copy / "checkpoints/step-6")

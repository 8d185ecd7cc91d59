"""Facts about checkpoints."""

import json

import pytest
import torch
from torch import nn

from polewise.training import NonFiniteError
from polewise.training.checkpoint import (
    forget_checkpoints_after,
    list_checkpoints,
    load_checkpoint,
    named_optimizer_state,
    save_checkpoint,
)
from polewise.training.durable import replace_folder
from polewise.training.manifest import write_manifest
from polewise.training.progress import Progress


def trained(seed=0, steps=3):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(steps):
        step(model, optimizer)
    return model, optimizer


def save(folder, model, optimizer, progress, *, keep):
    return save_checkpoint(
        folder, model, dict(named_optimizer_state(optimizer)), progress, keep=keep
    )


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.randn(5, 3)).square().mean().backward()
    optimizer.step()


def test_a_loaded_checkpoint_goes_on_exactly(tmp_path):
    model, optimizer = trained()
    where = Progress(step=3, seconds=1.5, best=0.25)
    path = save(tmp_path, model, optimizer, where, keep=2)
    step(model, optimizer)

    other, its_optimizer = trained(seed=1, steps=1)
    assert load_checkpoint(path, other, its_optimizer) == where
    step(other, its_optimizer)  # the same random batch, the same averages
    for parameter, wanted in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(parameter, wanted)


def test_a_checkpoint_holds_no_pickle(tmp_path):
    path = save(tmp_path, *trained(), Progress(step=3), keep=2)
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}
    json.loads((path / "progress.json").read_text())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_model_that_is_not_finite_is_never_saved(tmp_path, bad):
    model, optimizer = trained()
    good = save(tmp_path, model, optimizer, Progress(step=3), keep=1)
    before = {file.name: file.read_bytes() for file in good.iterdir()}
    model[1].bias.data[0] = bad
    with pytest.raises(NonFiniteError, match=r"the parameter 1\.bias is"):
        save(tmp_path, model, optimizer, Progress(step=4), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-3"]
    assert {file.name: file.read_bytes() for file in good.iterdir()} == before


def test_only_the_newest_are_kept_in_the_order_of_their_steps(tmp_path):
    model, optimizer = trained()
    for number in (2, 9, 10):
        save(tmp_path, model, optimizer, Progress(step=number), keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-9", "step-10"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    target = tmp_path / "model"
    replace_folder(target, lambda path: (path / "weights").write_text("old"))

    def fail(path):
        (path / "weights").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_folder(target, fail)
    assert (target / "weights").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_checkpoint_of_another_model_or_a_broken_one_is_explained(tmp_path):
    path = save(tmp_path, *trained(), Progress(step=3), keep=2)
    with pytest.raises(ValueError, match=r"must be complete and of this model; .*step-3"):
        load_checkpoint(path, nn.Linear(3, 4))
    (path / "progress.json").write_text("{")
    with pytest.raises(ValueError, match="checkpoint must be complete"):
        load_checkpoint(path, trained()[0])


def test_a_run_that_goes_back_forgets_the_checkpoints_after(tmp_path):
    for step in (2, 4, 7, 10):
        (tmp_path / f"step-{step}").mkdir()
        write_manifest(tmp_path / f"step-{step}")
    (tmp_path / "step-8").mkdir()  # someone else's
    forget_checkpoints_after(tmp_path / "step-4")
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-2", "step-4", "step-8"]

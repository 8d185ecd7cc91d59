"""What makes a run lighter or faster changes nothing that it learns."""

import io
import shutil
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from polewise.models import backbone
from polewise.models.block import Block
from polewise.tasks import RecallTask
from polewise.training import NonFiniteError, resume, session, train


def quiet():
    return Console(file=io.StringIO())


def farthest(a, b):
    left, right = (load_file(folder / "model-last/model.safetensors") for folder in (a, b))
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def test_activations_computed_again_give_the_same_bits(tmp_path, small_run, monkeypatch):
    counted = []

    def count(*arguments, **options):
        counted.append(arguments[0])
        return checkpoint(*arguments, **options)

    checkpoint = backbone.checkpoint
    monkeypatch.setattr(backbone, "checkpoint", count)
    train(small_run(), tmp_path / "kept", console=quiet())
    assert not counted
    train(small_run(checkpoint_activations=True), tmp_path / "again", console=quiet())
    assert len(counted) == 6  # one block, six steps; not in evaluation
    assert farthest(tmp_path / "kept", tmp_path / "again") == 0


class Poisoned(RecallTask):
    """The second loss is NaN."""

    def train_batches(self, seed, first_step=0):
        for step, batch in enumerate(super().train_batches(seed, first_step), first_step):
            yield batch | {"poison": torch.tensor(float("nan") if step == 1 else 1.0)}

    def loss(self, logits, batch):
        return super().loss(logits, batch) * batch["poison"]


def test_compiled_blocks_of_focus_learn_the_same(tmp_path, small_run):
    """A memory, and filters alone."""
    runs = [small_run(warmup=0, max_steps=2, compile=compiled) for compiled in (False, True)]
    for run, name in zip(runs, ("plain", "compiled"), strict=True):
        model = replace(run.model, mixer="focus", mixer_options={"heads": 2}, num_layers=2)
        train(replace(run, model=model), tmp_path / name, console=quiet())
    assert farthest(tmp_path / "plain", tmp_path / "compiled") < 1e-4


def test_compiled_blocks_learn_the_same_and_resume_exactly(tmp_path, small_run, monkeypatch):
    built = []
    build = session.build_model
    monkeypatch.setattr(session, "build_model", lambda *a: built.append(build(*a)) or built[-1])
    constant = {"warmup": 0, "final_learning_rate": 1}  # whatever the budget
    train(small_run(**constant), tmp_path / "plain", console=quiet())
    train(small_run(compile=True, **constant), tmp_path / "whole", console=quiet())
    compiled = [
        [
            part._compiled_call_impl is not None
            for part in model.modules()
            if isinstance(part, Block)
        ]
        for model in built
    ]
    assert compiled == [[False], [True]]
    assert farthest(tmp_path / "plain", tmp_path / "whole") < 1e-4

    train(small_run(compile=True, max_steps=3, **constant), tmp_path / "run", console=quiet())
    shutil.rmtree(tmp_path / "run/model-last")
    resume(tmp_path / "run", max_steps=6, console=quiet())
    assert farthest(tmp_path / "run", tmp_path / "whole") == 0

    run = small_run(Poisoned(length=6, vocab_size=6, num_eval=8, batch_size=4), compile=True)
    run = replace(run, training=replace(run.training, skip_limit=1))
    with pytest.raises(NonFiniteError, match="the loss is NaN, though the logits are finite"):
        train(run, tmp_path / "poisoned", console=quiet())

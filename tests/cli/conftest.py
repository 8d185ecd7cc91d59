"""A folder of its own for every test, and text runs whose models are random."""

import resource
import sys
from contextlib import contextmanager

import pytest
import torch

from polewise.tasks import TextTask
from polewise.training import ModelOptions, Run, RunFolder, TrainingOptions, build_model


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def make_run(tmp_path_factory):
    """A function of the seed and of model options that returns a run folder's path."""

    def make(seed=0, **options):
        options = {"mixer_options": {"chunk_length": 8, "bin_length": 8}} | options
        run = Run(
            task=TextTask(length=16),
            model=ModelOptions(**({"hidden_size": 8, "num_layers": 1} | options)),
            training=TrainingOptions(max_steps=1),
        )
        folder = RunFolder.create(tmp_path_factory.mktemp("run") / "run", run)
        torch.manual_seed(seed)
        folder.save_model(build_model(run.task.spec, run.model), best=True)
        return str(folder.path)

    return make


@pytest.fixture(scope="session")
def text_run(make_run):
    return make_run()


@pytest.fixture
def little_room(monkeypatch):
    """A context in which no file may grow beyond 300 bytes, as on a disk that is nearly full."""

    # Python would leave half of what it compiled, and read it ever after.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    @contextmanager
    def limited():
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited

"""What every test of a fault starts from."""

import shutil

import pytest
from accelerate.state import AcceleratorState
from tests.faults.runs import quiet, small_run

from polewise.training import train


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A run folder with two checkpoints, step-4 and step-6; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(small_run(), folder, console=quiet())
    AcceleratorState._reset_state(reset_partial_state=True)
    return folder


@pytest.fixture
def run_copy(finished_run, tmp_path):
    """A copy of it, to be broken."""
    return shutil.copytree(finished_run, tmp_path / "copy")

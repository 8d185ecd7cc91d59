"""Facts about models on several processes: outputs and gradients are those of one."""

from __future__ import annotations

import pytest
import torch
from tests.parallel import workers
from tests.parallel.launches import side_by_side

from polewise.ops.shards import Shards

PROCESSES = 4


@pytest.fixture(scope="module")
def differences(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("processes"))
    side_by_side(PROCESSES, workers.run, PROCESSES, folder)
    return [torch.load(f"{folder}/{rank}.pt") for rank in range(PROCESSES)]


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("form", workers.FORMS)
def test_a_sequence_split_over_processes_gives_the_gradients_of_one(differences, form, processes):
    for rank in range(processes):
        found = differences[rank][f"{form}, split over {processes}"]
        assert max(found.values()) < 1e-10, {n: d for n, d in found.items() if d >= 1e-10}
    assert "state" in differences[processes - 1][f"{form}, split over {processes}"]


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("engine", ["data_parallel", "fully_sharded"])
@pytest.mark.parametrize("form", ["focus", "attention"])
def test_rows_split_over_processes_give_the_gradients_of_one(differences, form, engine, processes):
    for found in differences[:processes]:
        worst = found[f"{form}, {engine} on {processes}"]
        assert max(worst.values()) < 1e-10, {n: d for n, d in worst.items() if d >= 1e-10}


def test_a_piece_must_hold_whole_bins_and_chunks():
    shards = Shards.__new__(Shards)  # nothing is exchanged: no group is needed
    shards.rank, shards.size = 0, 2
    with pytest.raises(ValueError, match="multiple of chunk_length = 8 steps on every process"):
        shards.require_whole(torch.zeros(1, 12, 4), None, None, bin_length=4, chunk_length=8)
    with pytest.raises(ValueError, match="state and lengths must be None"):
        shards.require_whole(torch.zeros(1, 16, 4), None, torch.tensor([16]), bin_length=4)
    with pytest.raises(ValueError, match="at least 20 steps on every process"):
        shards.window_before(torch.zeros(1, 16, 4), 20)
    with pytest.raises(ValueError, match="a multiple of 2 steps, one piece a process"):
        shards.piece(torch.zeros(1, 15, 4))

"""Parameters, gradients and averages in pieces: each process keeps its shard of every tensor.

The engine is torch's FSDP2. A block's parameters are whole only while the block works.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from polewise.models.block import Block


def shard_parameters(model: nn.Module, device: torch.device, processes: int) -> None:
    """From here on every process keeps its shard of each parameter, in place.

    Parameters become other objects: an optimiser must be made after this.
    """
    # A block returns its state, maybe a view. It is a value: no step changes it in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (processes,))
    for module in model.modules():
        if isinstance(module, Block):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


@torch.no_grad()
def gather_parameters(model: nn.Module, whole: nn.Module) -> None:
    """Fill a model of the same kind with the whole parameters and buffers.

    All processes must call it; it does nothing on one whose `whole` has no numbers (`meta`).
    """
    for target, value in _pairs(whole, model):
        target.copy_(whole_tensor(value))


@torch.no_grad()
def spread_parameters(whole: nn.Module, model: nn.Module) -> None:
    """Fill this process's shards from a whole model of the same kind."""
    for value, target in _pairs(whole, model):
        target.copy_(shard_like(target, value))


def whole_tensor(value: Tensor) -> Tensor:
    """Return a tensor whole; where it is sharded every process must ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def local_shard(value: Tensor) -> Tensor:
    """Return what this process holds of a tensor."""
    return value.to_local() if isinstance(value, DTensor) else value


def shard_like(parameter: Tensor, value: Tensor) -> Tensor:
    """Return this process's shard of a whole tensor, cut as the parameter is."""
    if not isinstance(parameter, DTensor):
        return value
    mesh = parameter.device_mesh
    value = value.to(mesh.device_type)
    # Every process has the whole: nothing need be sent.
    return distribute_tensor(value, mesh, parameter.placements, src_data_rank=None)


def _pairs(whole: nn.Module, model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Parameters and buffers of two models of the same kind, side by side."""
    yield from zip(whole.parameters(), model.parameters(), strict=True)
    yield from zip(whole.buffers(), model.buffers(), strict=True)

"""What each process of the tests does; in a file of its own because new processes import it."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from polewise import MIXERS, states
from polewise.layers.sharding import shard_sequence, unshard_sequence
from polewise.models import Backbone, BackboneConfig

FOCUS = {
    "chunk_length": 8, "bin_length": 4, "windows": 2, "filters": 1, "hypernetwork": "recurrent",
    "memory_every": 1,
}  # fmt: skip
PUBLISHED = {"chunk_length": 8, "bin_length": 4, "windows": 2}
FORMS = {
    "focus": ("focus", FOCUS),
    "sliding, two filters": ("focus", FOCUS | {"sliding": True, "filters": 2, "heads": 2}),
    "direct form": ("focus", FOCUS | {"realisation": "direct", "hypernetwork": "none"}),
    "direct form, reset": ("focus", FOCUS | {"realisation": "direct", "reset": True}),
    "real memory": ("focus", FOCUS | {"memory_turning": False, "reset": True}),
    "long convolution": ("focus", FOCUS | {"hypernetwork": "long_conv", "taps": 7}),
    "published": ("published_focus", PUBLISHED | {"hypernetwork": "shared_recurrent"}),
    "default": ("focus", {}),
    "memory alone": ("focus", {"memory_every": 1}),
    "attention": ("attention", {"heads": 2}),
    "attention, positions": ("attention", {"heads": 2, "positions": 400, "conv_width": 3}),
    "mega": ("mega", {"chunk_length": 8, "memories": 2}),
    "chunks": ("chunk_attention", {"chunk_length": 8, "heads": 2}),
    "sliding": ("sliding_attention", {"chunk_length": 8, "heads": 2}),
    "s4d": ("s4d", {"state_dim": 4}),
}


def run(rank: int, size: int, folder: str) -> None:
    """Compare every way to use the processes with one process, and write what differs."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    differences = {}
    groups = {2: dist.new_group([0, 1]), size: dist.group.WORLD}
    for name, (mixer, options) in FORMS.items():
        for processes, group in groups.items():
            if rank < processes:
                differences[f"{name}, split over {processes}"] = split(mixer, options, group)
        dist.barrier()
    for processes, group in groups.items():
        if rank < processes:
            for name in ("focus", "attention"):
                for engine in (data_parallel, fully_sharded):
                    where = f"{name}, {engine.__name__} on {processes}"
                    differences[where] = engine(*FORMS[name], group)
        dist.barrier()
    torch.save(differences, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def built(mixer: str, options: dict) -> nn.Module:
    torch.manual_seed(0)
    config = MIXERS[mixer](dim=8, **options)
    return Backbone(BackboneConfig(mixer=config, num_layers=2, intermediate_size=12)).double()


def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, 64, 8, generator=generator, dtype=torch.float64).unbind()


def gradients(model: nn.Module, x: torch.Tensor, weight: torch.Tensor):
    x = x.clone().requires_grad_()
    y, state = model(x)
    (y * weight).sum().backward()
    return y.detach(), x.grad, {n: p.grad for n, p in model.named_parameters()}, state


def far(a: torch.Tensor, b: torch.Tensor, scale: float = 1.0) -> float:
    """The largest difference, relative to `scale` or the largest entry."""
    return float((a - b).detach().abs().max()) / max(float(b.detach().abs().max()), scale)


def largest(grads: dict[str, torch.Tensor]) -> float:
    """Of all parameters: the gradient of a key's bias is nothing but rounding."""
    return max(float(grad.abs().max()) for grad in grads.values())


def split(mixer: str, options: dict, group) -> dict[str, float]:
    model, (x, weight) = built(mixer, options), drawn()
    y, grad_x, grads, _ = gradients(model, x, weight)
    pieces = copy.deepcopy(model)
    pieces.zero_grad()
    shards = shard_sequence(pieces, group)
    our_y, our_grad_x, our_grads, _ = gradients(pieces, x, weight)
    differences = {"y": far(our_y, y)}
    for name, grad, one in [("x", our_grad_x, grad_x)] + [
        (name, grad, grads[name]) for name, grad in our_grads.items()
    ]:
        dist.all_reduce(grad, group=group)
        differences[name] = far(grad / shards.size, one, largest(grads))

    first = pieces.blocks[0].mixer
    given = {} if pieces.shared is None else {"shared": pieces.shared(shards.piece(x))[0]}
    _, our_state = first(shards.piece(x), **given)
    if shards.rank == shards.size - 1:
        given = {} if model.shared is None else {"shared": model.shared(x)[0]}
        _, state = model.blocks[0].mixer(x, **given)
        pairs = zip(states.tensors(our_state), states.tensors(state), strict=True)
        differences["state"] = max(far(ours.double(), one.double()) for ours, one in pairs)
    unshard_sequence(pieces)
    differences["undone"] = far(pieces(x)[0].detach(), y)
    return differences


def data_parallel(mixer: str, options: dict, group) -> dict[str, float]:
    model, (x, weight) = built(mixer, options), drawn()
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    _, _, grads, _ = gradients(model, x, weight)
    parallel = DistributedDataParallel(copy.deepcopy(model), process_group=group)
    parallel.zero_grad()
    rows = slice(rank * len(x) // size, (rank + 1) * len(x) // size)
    _, _, ours, _ = gradients(parallel, x[rows], weight[rows])
    scale = largest(grads)
    return {n: far(size * ours[f"module.{n}"], grad, scale) for n, grad in grads.items()}


def fully_sharded(mixer: str, options: dict, group) -> dict[str, float]:
    model, (x, weight) = built(mixer, options), drawn()
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    _, _, grads, _ = gradients(model, x, weight)
    parallel = copy.deepcopy(model)
    parallel.zero_grad()
    mesh = DeviceMesh.from_group(group, "cpu")
    for block in parallel.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(parallel, mesh=mesh)
    rows = slice(rank * len(x) // size, (rank + 1) * len(x) // size)
    _, _, ours, _ = gradients(parallel, x[rows], weight[rows])
    scale = largest(grads)
    return {n: far(size * ours[n].full_tensor(), grad, scale) for n, grad in grads.items()}

"""What `gpu.py` checks and times: sizes, and the ops with input on the GPU."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from polewise import FocusConfig
from polewise.ops import _backends, associative_filter, direct_form_filter, normal_form_filter

FORMS = ("direct", "normal")


@dataclasses.dataclass(frozen=True)
class Scale:
    """What is measured, and where."""

    device: str
    backend: str | None
    """None is what a user gets."""
    checked: list[tuple[str, tuple[int, int, int], dict[str, Any]]]
    checked_products: list[tuple[tuple[int, int, int, int, int], tuple[torch.dtype, ...]]]
    """batch, length, heads, key_dim, value_dim; and in which dtypes."""
    checked_layers: list[dict[str, Any]]
    """Options of a layer of Focus, and `length`."""
    long: list[int]
    new_lengths: list[int]
    sizes: list[tuple[int, int, int, torch.dtype]]
    segments: list[int]
    products: list[tuple[int, int, int, int]]
    """batch, length, heads, dim of keys and values."""
    block_lengths: list[int]
    block_width: int


FULL = Scale(
    device="cuda",
    backend=None,
    checked=[
        ("plain", (2, 256, 96), {"bin_length": 32}),
        # Several segments, in each several bins.
        ("ragged", (3, 3333, 96), {"bin_length": 37, "ragged": True}),
        ("reset", (3, 3333, 96), {"bin_length": 37, "ragged": True, "reset": True}),
        ("bins of many segments", (2, 5000, 96), {"bin_length": 3000, "ragged": True}),
        ("long", (2, 20000, 96), {}),
        # A width that no vector of 16 bytes divides.
        ("odd width", (2, 700, 35), {"bin_length": 37, "ragged": True}),
    ],
    checked_products=[
        ((2, 333, 3, 64, 64), (torch.float32, torch.float16, torch.bfloat16)),
        ((1, 100, 2, 20, 40), (torch.bfloat16,)),
        ((2, 700, 2, 128, 32), (torch.bfloat16,)),
        ((1, 100, 1, 128, 128), (torch.bfloat16,)),
    ],
    checked_layers=[
        {"dim": 256, "length": 1000},
        {"dim": 256, "length": 1000, "memory": False, "filters": 1},
        {"dim": 256, "length": 1000, "filters": 2, "hypernetwork": "recurrent", "chunk_length": 64},
    ],
    long=[2**12, 2**16, 2**20],
    new_lengths=[4000, 3999, 4001, 5120, 12345],
    sizes=[
        (8, 32768, 1024, torch.bfloat16),
        (8, 8192, 1024, torch.bfloat16),
        (64, 1024, 1024, torch.bfloat16),
        (1, 131072, 1024, torch.bfloat16),
        (1, 1048576, 256, torch.bfloat16),
        (8, 8192, 512, torch.float32),
        (8, 1, 1024, torch.bfloat16),
    ],
    segments=[128, 256, 512, 1024, 2048, 4096],
    products=[(8, 2048, 16, 64), (2, 8192, 16, 64), (1, 32768, 16, 64), (1, 131072, 16, 64)],
    block_lengths=[2048, 4096, 8192, 16384, 32768, 65536, 131072],
    block_width=1024,
)
SMOKE = Scale(
    device="cpu",
    backend="triton",
    checked=[("ragged", (2, 33, 4), {"bin_length": 7, "ragged": True})],
    checked_products=[((1, 40, 1, 4, 3), (torch.float32, torch.bfloat16))],
    checked_layers=[{"dim": 64, "length": 64}],
    long=[64],
    new_lengths=[20, 21],
    sizes=[(1, 40, 4, torch.bfloat16)],
    segments=[16],
    products=[(1, 40, 1, 16)],
    block_lengths=[64],
    block_width=64,
)


class Work:
    """One filter with input on the GPU, and its gradients of everything."""

    def __init__(
        self, form: str, batch: int, length: int, dim: int, dtype: torch.dtype, device: str, *,
        bin_length: int = 128, radius: tuple[float, float] = (0.3, 0.9), ragged: bool = False,
        reset: bool = False,
    ) -> None:  # fmt: skip
        draw = torch.Generator(device).manual_seed(length + dim)
        wide = torch.float64 if dtype == torch.float64 else torch.float32

        def random(kind: Callable[..., Tensor], *shape: int, of: torch.dtype = wide) -> Tensor:
            return kind(*shape, generator=draw, device=device, dtype=wide).to(of)

        offset: int | Tensor = 0
        lengths = None
        if ragged:
            offset = torch.arange(batch, device=device) * 7 % bin_length
            lengths = length - torch.arange(batch, device=device) * (length // (2 * batch))
        late = int(offset.max()) if isinstance(offset, Tensor) else offset
        bins = -(-(late + length) // bin_length)
        self.form, self.bin_length, self.device = form, bin_length, device
        self.options = {"offset": offset, "lengths": lengths, "reset": reset}
        self.grad = random(torch.randn, batch, length, dim, of=dtype)
        low, high = radius
        decay = low + (high - low) * random(torch.rand, batch, bins, dim)
        # The direct form amplifies rounding by 1 / sin(angle): keep that below 10.
        angle = 0.1 + (torch.pi - 0.2) * random(torch.rand, batch, bins, dim)
        x, state = (
            random(torch.randn, batch, length, dim, of=dtype),
            random(torch.randn, batch, dim, 2),
        )
        if form == "direct":
            coefficients = [torch.stack([-2 * decay * angle.cos(), decay**2], -1)]
        else:
            coefficients = [decay, angle, random(torch.randn, dim, 2)]
        self.inputs = [x, state, *coefficients]

    def forward(self, inputs: list[Tensor], backend: str | None) -> tuple[Tensor, Tensor]:
        x, state, *coefficients = inputs
        options = {
            name: value.to(x.device) if isinstance(value, Tensor) else value
            for name, value in self.options.items()
        }
        if self.form == "direct":
            return direct_form_filter(
                x, *coefficients, self.bin_length, state=state, backend=backend, **options
            )
        decay, angle, mix = coefficients
        return normal_form_filter(
            x, decay, angle, self.bin_length, mix=mix, state=state, backend=backend, **options
        )

    def both(self, backend: str | None, *, exactly: bool = False) -> tuple[Tensor, ...]:
        """y, the last state, and the gradients of every input, of `sum(grad y) + sum(state)`."""
        inputs, grad = self.inputs, self.grad
        if exactly:  # the definition goes step by step, for which a GPU is slow
            device = self.device if backend == "torch" else "cpu"
            inputs, grad = [t.double().to(device) for t in inputs], grad.double().to(device)
        leaves = [t.detach().requires_grad_() for t in inputs]
        y, state = self.forward(leaves, backend)
        gradients = torch.autograd.grad((y, state), leaves, (grad, torch.ones_like(state)))
        return (y.detach(), state.detach(), *gradients)

    def minimal_bytes(self, *, backward: bool) -> int:
        x = self.inputs[0]
        coefficients = sum(t.nbytes for t in self.inputs[2:])
        return (5 * x.nbytes + 3 * coefficients) if backward else (2 * x.nbytes + coefficients)


class Products:
    """The associative filter with input on the GPU, and its gradients of everything."""

    def __init__(
        self, batch: int, length: int, heads: int, key_dim: int, value_dim: int,
        dtype: torch.dtype, device: str, *, turning: bool,
    ) -> None:  # fmt: skip
        draw = torch.Generator(device).manual_seed(length)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw, device=device)

        q, k = (normal(batch, length, heads, key_dim) / key_dim**0.5 for _ in range(2))
        v = normal(batch, length, heads, value_dim)
        decay = 1 - 0.1 * torch.rand(batch, length, heads, generator=draw, device=device)
        angle = [normal(batch, length, heads)] if turning else []
        state = normal(batch, heads, 2 if turning else 1, key_dim, value_dim)
        self.inputs = [*(t.to(dtype) for t in (q, k, v)), decay, *angle, state]
        self.grads = [normal(*v.shape).to(dtype), normal(*state.shape)]

    def forward(self, inputs: list[Tensor], backend: str | None) -> tuple[Tensor, Tensor]:
        *sequences, state = inputs
        return associative_filter(*sequences, state=state, backend=backend)

    def both(self, backend: str | None, *, exactly: bool = False) -> tuple[Tensor, ...]:
        """y, the last state, and the gradients of every input."""
        inputs = self.inputs
        if exactly:
            inputs = [t.double() if backend == "torch" else t.double().cpu() for t in inputs]
        leaves = [t.detach().requires_grad_() for t in inputs]
        y, state = self.forward(leaves, backend)
        grads = [grad.to(out) for grad, out in zip(self.grads, (y, state), strict=True)]
        gradients = torch.autograd.grad((y, state), leaves, grads)
        return (y.detach(), state.detach(), *gradients)


class Layer:
    """A layer of Focus as its users have it, with the backends that it chooses by itself."""

    def __init__(self, dtype: torch.dtype, device: str, *, length: int, **options: Any) -> None:
        torch.manual_seed(0)
        draw = torch.Generator().manual_seed(length)
        width = options["dim"]
        self.layer = FocusConfig(**options).build().to(device, dtype)
        self.x, self.grad = (
            torch.randn(2, length, width, generator=draw).to(device, dtype) for _ in range(2)
        )
        self.lengths = torch.tensor([length, length // 2])

    def both(self, backend: str | None, *, exactly: bool = False) -> tuple[Tensor, ...]:
        """y, and the gradients of x and every parameter; `backend` is the layer's choice.

        In half precision without that of `log_frequency`: terms that grow with the position and
        cancel, of which rounding leaves 0.1 to 0.3 wrong on a CPU too.
        """
        layer, x, grad = self.layer, self.x, self.grad
        chosen: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        if exactly:
            layer, x, grad = copy.deepcopy(layer).double(), x.double(), grad.double()
            chosen = mock.patch.object(_backends, "fastest_backend", return_value="torch")
        x = x.detach().requires_grad_()
        with chosen:
            y, _ = layer(x, lengths=self.lengths.to(x.device))
        learned = [
            parameter
            for name, parameter in layer.named_parameters()
            if self.x.dtype.itemsize > 2 or name != "log_frequency"
        ]
        return (y.detach(), *torch.autograd.grad(y, [x, *learned], grad))


def quietly(work: Work | Products, backend: str | None) -> object:
    with torch.no_grad():
        return work.forward(work.inputs, backend)


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

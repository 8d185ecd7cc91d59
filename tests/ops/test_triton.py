"""The filters' GPU kernels, checked without a GPU.

Their numbers by Triton's interpreter, in a process of its own; that they compile, by compiling
them for a GPU that need not be there.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from polewise.ops import _backends, direct_form_filter, normal_form_filter

triton = pytest.importorskip("triton", reason="Triton is not installed (it runs on Linux)")
INTERPRETED = triton.knobs.runtime.interpret


@pytest.mark.parametrize("of", ["triton", "associative"])
def test_the_interpreted_kernels_compute_the_filters(of):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "pytest", "-x", f"tests/ops/interpreted_{of}.py"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


ELEMENTS = {"x", "y", "grad_x", "grad_y"}
ROWS = {"offsets", "lengths"}
NUMBERS = {
    "length", "bins", "bin_length", "steps", "segments", "x_row", "grad_row", "parts_row",
    "parts_run", "mix_row", "mix_bin", "mix_channel", "mix_part",
}  # fmt: skip
SHARED_MEMORY_OF_HOPPER = 227 * 1024
CONSTANTS = {"dim": 96, "x_time": 96, "grad_time": 96, "BLOCK": 64}


def kernels():
    from polewise.ops import _direct_form_triton, _normal_form_triton, _segments_triton

    for module in (_segments_triton, _direct_form_triton, _normal_form_triton):
        for name, value in vars(module).items():
            if isinstance(value, triton.runtime.Autotuner):
                yield pytest.param(value.fn, id=f"{module.__name__.split('.')[-1]}.{name}")


def compiled_for_hopper(kernel, warps, given, elements, element, numbers):
    """Machine code of a kernel: `given` are its constants, `elements` its arrays of the
    sequence's dtype."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {
        name: "constexpr" if name in given
        else f"*{element}" if name in elements
        else "*i64" if name in ROWS
        else "i32" if name in numbers
        else "*fp32"
        for name in kernel.arg_names
    }  # fmt: skip
    constants = {name: given[name] for name in types if name in given}
    return triton.compile(
        ASTSource(kernel, types, constants),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": warps, "enable_fp_fusion": True},
    )


def bytes_spilled(program, folder):
    """Of a thread, as the assembler says that it needs a stack for."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        pytest.skip("Triton came without cuobjdump")
    binary = folder / "kernel.cubin"
    binary.write_bytes(program.asm["cubin"])
    command = [tool, "--dump-resource-usage", binary]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (stack,) = re.findall(r" STACK:(\d+) ", said)
    return int(stack)


@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are not compiled")
@pytest.mark.parametrize(("element", "reset"), [("bf16", True), ("fp32", True), ("fp16", False)])
@pytest.mark.parametrize("kernel", list(kernels()))
def test_every_kernel_compiles_for_a_hopper_gpu_and_stays_in_registers(
    kernel, element, reset, tmp_path, monkeypatch
):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    given = CONSTANTS | {"RESET": reset}
    program = compiled_for_hopper(kernel, 1, given, ELEMENTS, element, NUMBERS)
    assert program.asm["cubin"]
    assert bytes_spilled(program, tmp_path) <= 8  # two numbers of one gradient do not fit


@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are not compiled")
@pytest.mark.parametrize(
    ("element", "dim", "turning"), [("bf16", 64, True), ("fp32", 128, True), ("fp16", 64, False)]
)
@pytest.mark.parametrize(
    "name", ["_states", "_outputs", "_futures", "_value_gradients", "_gradients"]
)
def test_every_kernel_of_the_associative_filter_fits_a_hopper_gpu(
    name, dim, turning, element, tmp_path, monkeypatch
):
    from polewise.ops import _associative_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    given = {
        "key_dim": dim, "value_dim": dim, "TURNING": turning, "KEYS": dim, "TILE": 32, "CHUNK": 32,
        "PRECISION": "tf32x3" if element == "fp32" else "tf32",
    }  # fmt: skip
    program = compiled_for_hopper(
        getattr(_associative_triton, name), 8 if name == "_gradients" else 4, given,
        {"q", "k", "v", "y", "grad_y", "grad_q", "grad_k", "grad_v"}, element,
        {"length", "heads"},
    )  # fmt: skip
    assert program.asm["cubin"]
    assert program.metadata.shared <= SHARED_MEMORY_OF_HOPPER


@pytest.mark.skipif(INTERPRETED, reason="the interpreter runs on a CPU")
@pytest.mark.parametrize("form", ["direct", "normal"])
def test_a_cpu_without_the_interpreter_is_refused(form):
    x, a = torch.zeros(1, 4, 2), torch.zeros(1, 1, 2, 2)
    run, coefficients = {
        "direct": (direct_form_filter, [a]),
        "normal": (normal_form_filter, [a[..., 0], a[..., 1]]),
    }[form]
    with pytest.raises(ValueError, match=r"backend 'triton' runs on a GPU; got a tensor on cpu"):
        run(x, *coefficients, 4, backend="triton")


def test_the_device_chooses_the_backend(monkeypatch):
    on_cuda, on_xpu = (SimpleNamespace(device=torch.device(name)) for name in ("cuda", "xpu"))
    assert _backends.fastest_backend(on_cuda) == "triton"
    assert _backends.usable_backend(None, ("torch", "cpu"), on_cuda) == "torch"
    assert _backends.fastest_backend(on_xpu) == "torch"
    monkeypatch.setattr(_backends, "HAS_TRITON", False)
    assert _backends.fastest_backend(on_cuda) == "torch"
    assert _backends.fastest_backend(torch.zeros(1)) == "cpu"


def test_the_associative_filter_asks_for_its_kernels_only_where_they_fit(monkeypatch):
    module, chosen = importlib.import_module("polewise.ops.associative_filter"), []
    choose = module.usable_backend

    def noted(*arguments, **unfit):
        chosen.append(choose(*arguments, **unfit))
        return "torch"

    monkeypatch.setattr(_backends, "fastest_backend", lambda x: "triton")
    monkeypatch.setattr(module, "usable_backend", noted)
    for dtype, key_dim in [
        (torch.bfloat16, 64), (torch.float32, 128), (torch.float64, 64), (torch.float32, 129),
    ]:  # fmt: skip
        q = torch.zeros(1, 4, 2, key_dim, dtype=dtype)
        module.associative_filter(q, q, q, q[..., 0])
    assert chosen == ["triton", "triton", "torch", "torch"]

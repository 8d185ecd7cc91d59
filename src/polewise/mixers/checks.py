"""The mixer contract as code. Run it on ours in the tests, and on your own.

from polewise import check_mixer
check_mixer(MyMixer(dim=8), dim=8)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from polewise import states


def check_mixer(mixer: nn.Module, *, dim: int | None = None, length: int = 37) -> None:
    """Check that a mixer keeps the contract.

    Args:
        mixer: `(x, state=None, lengths=None) -> (y, state)`, with a class or instance
            attribute `causal: bool`. It is copied, not changed; where it has a `config` with a
            method `build()`, another one is built.
        dim: channels; None reads `mixer.config.dim`.
        length: of the test sequences; take more than two chunks and bins.

    What a mixer cannot do it declares as `limits: dict[str, str]`, the name of a check to the
    reason, as may a module inside it. Checks: see `mixer_checks`. What the caller has compiled is
    compiled anew afterwards.

    Raises:
        AssertionError: a fact does not hold, or an error comes where there should be none.
        ValueError: `dim` must be given.
        RuntimeError: Python runs with `-O`, which leaves assertions out.
    """
    if not __debug__:
        raise RuntimeError("check_mixer must be run by a Python without -O, which checks nothing.")
    for name, check in mixer_checks(mixer, dim=dim, length=length):
        try:
            check()
        except Exception as fact:
            kind = "" if isinstance(fact, AssertionError) else f"{type(fact).__name__}: "
            raise AssertionError(f"{type(mixer).__name__} fails {name!r}: {kind}{fact}") from fact


def mixer_checks(
    mixer: nn.Module, *, dim: int | None = None, length: int = 37
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Every check that applies, by name, so that a test runner can show them one by one."""
    config: Any = getattr(mixer, "config", None)
    channels = getattr(config, "dim", None) if dim is None else dim
    if channels is None:
        raise ValueError("dim must be given for a mixer without config.dim; got None.")
    limits = {name for part in mixer.modules() for name in getattr(part, "limits", {})}
    checks: dict[str, Callable[[nn.Module, Tensor], None]] = {
        "shape": _keeps_shape_and_dtype,
        "any length": _takes_any_length,
        "gradients": _gives_every_parameter_a_gradient,
        "padding": _ignores_padding,
        "rows": _treats_rows_alone,
        "save and load": _survives_saving,
        "compile": _compiles,
        "precision": _runs_in_every_precision,
    }
    if mixer.causal:
        checks |= {
            "causality": _never_looks_ahead,
            "segments": _any_split_equals_one_pass,
            "state": _has_a_state_of_tensors,
        }
        if not _uses_fft(mixer):
            checks["nan"] = _keeps_nan_to_later_outputs
    else:
        checks["both ways"] = _looks_both_ways
    for name, check in checks.items():
        if name not in limits:
            yield name, _bind(check, mixer, channels, length)


def _bind(check, mixer: nn.Module, dim: int, length: int) -> Callable[[], None]:
    def run() -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, length, dim, generator=generator, dtype=torch.float64)
        # On the CPU and in float64, which not every GPU has; dropout would break every fact.
        check(copy.deepcopy(mixer).cpu().double().eval(), x)

    return run


def _close(a: Tensor, b: Tensor, fact: str, tolerance: float = 1e-10) -> None:
    assert a.shape == b.shape, f"{fact}: shapes {tuple(a.shape)} and {tuple(b.shape)}"
    if not a.numel() or torch.equal(a, b):
        return
    finite = b[torch.isfinite(b)]
    scale = finite.abs().amax().clamp(min=1e-6) if finite.numel() else 1
    error = torch.where(a == b, 0.0, (a - b).abs() / scale).amax()
    assert error <= tolerance, f"{fact}: relative difference {error:.1e}"


def _same_gradients(a: Tensor, b: Tensor, inputs: list[Tensor], fact: str) -> None:
    """Of one number that weighs every entry of `a`, and of `b`."""
    weights = torch.linspace(-1, 1, b.numel(), dtype=b.dtype).view_as(b)
    ours, theirs = (
        torch.autograd.grad(each, inputs, weights, allow_unused=True, materialize_grads=True)
        for each in (a, b)
    )
    # The bias of keys has no gradient but rounding: what counts is a share of all of them.
    largest = max(float(each.abs().amax()) for each in theirs if each.numel())
    for one, other in zip(ours, theirs, strict=True):
        assert ((one - other).abs() <= 1e-10 * largest).all(), fact


def _keeps_shape_and_dtype(mixer: nn.Module, x: Tensor) -> None:
    y, _ = mixer(x)
    assert y.shape == x.shape, f"y has shape {tuple(y.shape)} for x {tuple(x.shape)}"
    assert y.dtype == x.dtype, f"y is {y.dtype} for x {x.dtype}"


def _takes_any_length(mixer: nn.Module, x: Tensor) -> None:
    for length in (0, 1, 2, 3, x.shape[1]):
        y, _ = mixer(x[:, :length])
        assert y.shape == x[:, :length].shape, f"length {length} gives {tuple(y.shape)}"
        assert torch.isfinite(y).all(), f"length {length} gives values that are not finite"
    y, _ = mixer(x[:0])
    assert y.shape == x[:0].shape, f"an empty batch gives {tuple(y.shape)}"


def _gives_every_parameter_a_gradient(mixer: nn.Module, x: Tensor) -> None:
    x = x.clone().requires_grad_()
    y, _ = mixer(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    assert x.grad is not None, "x has no gradient"
    assert torch.isfinite(x.grad).all(), "the gradient of x is not finite"
    for name, parameter in mixer.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        assert torch.isfinite(parameter.grad).all(), f"the gradient of {name} is not finite"
        assert parameter.grad.abs().sum() > 0, f"the gradient of {name} is zero"


def _ignores_padding(mixer: nn.Module, x: Tensor) -> None:
    short = x.shape[1] // 2 + 1
    lengths = torch.tensor([x.shape[1], short])
    padded = x.clone()
    padded[1, short:] = float("nan")
    padded.requires_grad_()
    y, state = mixer(padded, lengths=lengths)
    alone, state_alone = mixer(x[1:, :short])
    _close(y[1:, :short], alone, "a padded row differs from the row alone")
    assert y[1, short:].eq(0).all(), "the output at padding is not 0"
    y.sum().backward()
    for name, parameter in mixer.named_parameters():
        grad = parameter.grad
        assert grad is None or torch.isfinite(grad).all(), f"padding reaches the gradient of {name}"
    if state is None:
        return
    for steps in (0, 1, 4):
        # In pieces: a segment whose second row ends early, or has nothing new, then another.
        segment = x[:, :6].clone()
        segment[1, steps:] = float("nan")
        more, after = mixer(segment, state, torch.tensor([6, steps]))
        more_alone, after_alone = mixer(x[1:, :steps], state_alone)
        _close(more[1:, :steps], more_alone, "a padded row that goes on differs from the row alone")
        assert more[1, steps:].eq(0).all(), "the output at padding is not 0 in a later segment"
        rest, _ = mixer(x[:, :1], after)
        rest_alone, _ = mixer(x[1:, :1], after_alone)
        _close(rest[1:], rest_alone, "what follows a padded row differs from the row alone")


def _treats_rows_alone(mixer: nn.Module, x: Tensor) -> None:
    y, _ = mixer(x)
    _close(mixer(x[1:])[0], y[1:], "a row depends on its neighbours")


def _survives_saving(mixer: nn.Module, x: Tensor) -> None:
    y, _ = mixer(x)
    # A copy would bring along what the saved numbers lack; one that is built anew does not.
    build = getattr(getattr(mixer, "config", None), "build", None)
    other = None if build is None else build().double().train(mixer.training)
    if type(other) is not type(mixer):  # a kind of its own, whose configuration builds another
        other = copy.deepcopy(mixer)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(mixer.state_dict())
    assert torch.equal(other(x)[0], y), "loading what was saved changes the output"


def _compiles(mixer: nn.Module, x: Tensor) -> None:
    torch.compiler.reset()
    compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
    x = x.clone().requires_grad_()
    whole, compiled_whole = mixer(x)[0], compiled(x)[0]
    _close(compiled_whole, whole, "the compiled mixer differs")
    _same_gradients(compiled_whole, whole, [x, *mixer.parameters()], "compiled, a gradient differs")
    if mixer.causal:
        (_, state), lengths = mixer(x[:, :5]), torch.tensor([3, x.shape[1]])
        later, compiled_later = (each(x, state, lengths)[0] for each in (mixer, compiled))
        _close(compiled_later, later, "the compiled mixer differs after a segment, beside lengths")


def _runs_in_every_precision(mixer: nn.Module, x: Tensor) -> None:
    exact, _ = mixer(x)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        narrow, narrow_x = copy.deepcopy(mixer).to(dtype), x.to(dtype)
        y, _ = narrow(narrow_x)
        assert y.dtype == dtype, f"y is {y.dtype} for x {dtype}"
        _close(y.double(), exact, f"{dtype} differs from float64", tolerance)
        first, state = narrow(narrow_x[:, :5])
        if state is not None:  # kept in few bytes, as `states.to` makes it
            rest, _ = narrow(narrow_x[:, 5:], states.to(state, dtype))
            y = torch.cat([first, rest], 1)
            _close(y.double(), exact, f"with a state in {dtype} it differs", tolerance)
    mixer = copy.deepcopy(mixer).float()
    with torch.autocast(x.device.type, torch.bfloat16):
        y, _ = mixer(x.float())
    _close(y.double(), exact, "autocast to bfloat16 differs from float64", 0.1)
    y.sum().backward()
    for name, parameter in mixer.named_parameters():
        assert parameter.grad is not None, f"under autocast {name} has no gradient"
        assert torch.isfinite(parameter.grad).all(), f"under autocast {name} has a bad gradient"


def _never_looks_ahead(mixer: nn.Module, x: Tensor) -> None:
    tolerance = 1e-12 if _uses_fft(mixer) else 0.0
    for training in (True, False):
        mixer.train(training)
        for length in (1, 7, x.shape[1]):
            x_row = x[:1, :length]
            jacobian = torch.autograd.functional.jacobian(
                lambda part: mixer(part)[0].sum(-1)[0], x_row
            )
            jacobian = jacobian[:, 0].abs().sum(-1)
            ahead = jacobian.triu(1).amax()
            assert ahead <= tolerance * jacobian.amax(), (
                f"an output depends on a later input by {ahead:.1e} at length {length}"
            )


def _looks_both_ways(mixer: nn.Module, x: Tensor) -> None:
    jacobian = torch.autograd.functional.jacobian(lambda part: mixer(part)[0].sum(-1)[0], x[:1])
    jacobian = jacobian[:, 0].abs().sum(-1)
    for part, which in ((jacobian.triu(1), "a later"), (jacobian.tril(-1), "an earlier")):
        assert part.any(), f"no output depends on {which} input"


def _keeps_nan_to_later_outputs(mixer: nn.Module, x: Tensor) -> None:
    y, _ = mixer(x)
    for t in (1, x.shape[1] // 3, x.shape[1] - 1):
        poisoned = x.clone()
        poisoned[:, t:] = float("nan")
        z, _ = mixer(poisoned)
        assert torch.isfinite(z[:, :t]).all(), f"NaN from step {t} on reaches an earlier output"
        _close(z[:, :t], y[:, :t], f"NaN from step {t} on changes an earlier output", 1e-12)
        assert z[:, t].isnan().any(), "NaN in the input does not come out"


def _any_split_equals_one_pass(mixer: nn.Module, x: Tensor) -> None:
    length, x = x.shape[1], x.clone().requires_grad_()
    whole, end = mixer(x)
    generator = torch.Generator().manual_seed(1)
    splits = [list(range(length + 1)), [0, 0, length, length]]
    for pieces in (2, 3, 5):
        cuts = torch.randint(0, length + 1, (pieces,), generator=generator).tolist()
        splits.append(sorted([0, *cuts, length]))
    for split in splits:
        state, outputs = None, []
        for begin, stop in pairwise(split):
            given = [part.clone() for part in states.tensors(state)]
            y, after = mixer(x[:, begin:stop], state)
            for part, before in zip(states.tensors(state), given, strict=True):
                assert torch.equal(part, before), "a call changes the state that it was given"
            outputs.append(y)
            state = after
        _close(torch.cat(outputs, 1), whole, f"the split {split} changes the output")
        for ours, theirs in zip(states.tensors(state), states.tensors(end), strict=True):
            _close(ours, theirs, f"the split {split} changes the final state")
    in_pieces, inputs = torch.cat(outputs, 1), [x, *mixer.parameters()]
    _same_gradients(in_pieces, whole, inputs, f"the split {split} changes a gradient")


def _has_a_state_of_tensors(mixer: nn.Module, x: Tensor) -> None:
    _, state = mixer(x)
    assert hasattr(state, "_fields"), f"the state is a {type(state).__name__}, not a NamedTuple"
    for leaf in states.tensors(state):
        assert leaf.shape[0] == x.shape[0], f"a state tensor has shape {tuple(leaf.shape)}"
    swapped = states.select_batch(state, torch.tensor([1, 0]))
    y, _ = mixer(x, state)
    z, _ = mixer(x.flip(0), swapped)
    _close(z.flip(0), y, "reordering the batch of the state does not reorder what follows")


def _uses_fft(mixer: nn.Module) -> bool:
    return any(getattr(part, "uses_fft", False) for part in mixer.modules())

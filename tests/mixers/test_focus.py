"""Facts about Focus beyond the contract."""

from __future__ import annotations

import cmath

import pytest
import torch
from torch.nn import functional

from polewise import Focus, FocusConfig, states
from polewise.filters import is_stable
from polewise.models import Block

SMALL = {"dim": 8, "chunk_length": 8, "bin_length": 8, "windows": 2}


def test_the_published_formula_is_refused_in_causal_use_and_says_why():
    with pytest.raises(ValueError, match=r"depends on later inputs.*leak=True"):
        FocusConfig.paper(dim=8, bin_length=8, chunk_length=8, causal=True)


def test_the_published_formula_leaks_when_asked_for_by_name():
    config = FocusConfig.paper(dim=8, bin_length=8, chunk_length=8, causal=True, leak=True)
    mixer = config.build().double()
    x = torch.randn(1, 16, 8, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: mixer(x)[0].sum(-1)[0], x)
    assert jacobian[:, 0].abs().sum(-1).triu(1).max() > 1e-4


def test_the_first_bin_is_filtered_with_the_learned_default():
    mixer = FocusConfig(**SMALL).build()
    one, other = (mixer.coefficients(torch.randn(1, 24, 8)) for _ in range(2))
    torch.testing.assert_close(one[:, 0], other[:, 0])
    assert not torch.allclose(one[:, 1], other[:, 1])


def test_a_bins_filters_depend_on_the_bin_before_and_not_on_their_own():
    mixer = FocusConfig(**SMALL).build()
    x = torch.randn(1, 24, 8)
    changed = x.clone()
    changed[:, 8:16] += 1
    before, after = mixer.coefficients(x), mixer.coefficients(changed)
    torch.testing.assert_close(after[:, :2], before[:, :2])
    assert not torch.allclose(after[:, 2], before[:, 2])


@pytest.mark.parametrize("realisation", ["normal", "direct"])
def test_every_filter_is_stable_whatever_the_network_says(realisation):
    mixer = FocusConfig(**SMALL, realisation=realisation).build()
    for size in (0.0, 1.0, 1e4, -1e4):
        with torch.no_grad():
            mixer.filters.base.fill_(size)
        coefficients = mixer.coefficients(torch.randn(1, 24, 8))
        if realisation == "normal":
            assert (coefficients[..., 0] <= mixer.config.max_decay).all()
        else:
            assert is_stable(coefficients).all()


def test_the_state_does_not_grow():
    mixer = FocusConfig(**SMALL).build()
    sizes = {states.num_bytes(mixer(torch.randn(1, length, 8))[1]) for length in (1, 9, 100)}
    assert len(sizes) == 1


def test_focus_without_hypernetwork_ignores_the_input_when_placing_poles():
    mixer = FocusConfig(**SMALL, hypernetwork="none").build()
    one, other = (mixer.coefficients(torch.randn(1, 24, 8)) for _ in range(2))
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"bin_length": 10, "windows": 4},
            "bin_length must be a multiple of windows; got 10 and 4",
        ),
        ({"heads": 3}, "dim must be a multiple of heads"),
        ({"value_dim": 0}, "value_dim must be an integer of at least 1"),
        ({"realisation": "norml"}, "Did you mean 'normal'"),
        ({"chunk_length": 0}, "chunk_length must be an integer of at least 1"),
        ({"turning": False, "realisation": "direct"}, "turning must be True"),
        ({"max_decay": 1.0}, "max_decay must lie between 0 and 1"),
        ({"causal": False, "sliding": True}, "sliding needs causal=True"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        FocusConfig(**({"dim": 8} | options))


def test_a_wrong_input_or_state_is_named():
    mixer = FocusConfig(**SMALL).build()
    with pytest.raises(ValueError, match=r"x must have shape \(batch, length, 8\)"):
        mixer(torch.randn(1, 5, 7))
    both_ways = Focus(FocusConfig(**SMALL, causal=False))
    _, state = mixer(torch.randn(1, 5, 8))
    with pytest.raises(ValueError, match="state must be None without causal"):
        both_ways(torch.randn(1, 5, 8), state)
    with pytest.raises(ValueError, match="shared must be the features"):
        FocusConfig(**SMALL, hypernetwork="shared_recurrent").build()(torch.randn(1, 5, 8))


def test_rows_longer_than_their_segment_end_with_it():
    mixer, x = FocusConfig(**SMALL).build(), torch.randn(2, 5, 8)
    y, state = mixer(x, lengths=torch.tensor([5, 5]))
    longer, after = mixer(x, lengths=torch.tensor([99, 5]))
    assert torch.equal(longer, y)
    for ours, theirs in zip(states.tensors(after), states.tensors(state), strict=True):
        assert torch.equal(ours, theirs)


def test_focus_is_its_equations_step_by_step():
    torch.manual_seed(0)
    mixer = FocusConfig(
        **SMALL,
        associative_heads=2,
        associative_key_dim=3,
        associative_value_dim=5,
        max_decay=0.9,
    ).build()
    mixer = mixer.double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(1, 21, 8, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(mixer(x)[0][0], _by_loops(mixer, x), rtol=1e-9, atol=1e-11)


def _by_loops(mixer, x):
    """Focus with chunks and bins of 8, one head, one filter, real memories: a step at a time."""
    coefficients = _coefficients_by_loops(mixer, x[0])
    context = _short_conv(x[0], mixer.short_conv.kernel) + x[0]
    recalled = mixer.from_memory(_memory_by_loops(mixer.memory, x[0], context))
    x = context
    query = mixer.to_query_key(x) * mixer.query_scale[0] + mixer.query_shift
    states, keys, values, outputs = [0j] * 8, [], [], []
    for t, now in enumerate(x):
        filtered = mixer.filters.skip * now
        for channel in range(8):
            decay, angle = coefficients[t // 8, channel].tolist()
            pole = decay * cmath.exp(1j * angle)
            states[channel] = pole * states[channel] + now[channel].item()
            c0, c1 = mixer.filters.mix[0, 0, channel].tolist()
            gain = (1 - decay**2) ** 0.5
            filtered[channel] += gain * (c0 * states[channel].real + c1 * states[channel].imag)
        reset, candidate, value = mixer.from_filtered(filtered).split(8)
        key = mixer.to_query_key(filtered) * mixer.query_scale[1]
        if t % 8 == 0:
            keys, values = [], []
        keys.append(key)
        values.append(value)
        logits = torch.stack(
            [query[t] @ k / 8**0.5 + mixer.position_bias()[0, len(keys) - 1 - j]
             for j, k in enumerate(keys)]
        )  # fmt: skip
        attended = logits.softmax(0) @ torch.stack(values) + recalled[t]
        outputs.append(candidate + mixer.from_attention(functional.silu(reset) * attended))
    return torch.stack(outputs)


def _coefficients_by_loops(mixer, x):
    """Poles of every bin of 8: averages, maxima of the two halves of the bin before, a network."""
    network, base = mixer.filters.to_poles, mixer.filters.base[:, 0]
    embedder = mixer.features.embedder
    decays, x = embedder.logit.sigmoid(), _short_conv(x, mixer.short_conv.kernel) + x
    averages, embedded = torch.zeros_like(embedder.weight), []
    for now in x:
        averages = decays * averages + now
        embedded.append((embedder.weight * (1 - decays**2).sqrt() * averages).sum(0))
    numbers = [base]
    for start in range(0, len(x) - 8, 8):
        halves = [torch.stack(embedded[at : at + 4]).amax(0) for at in (start, start + 4)]
        pooled = torch.stack(halves, -1)
        hidden = (pooled @ network.up.weight.T + network.up.bias).sigmoid()
        numbers.append(base + hidden @ network.down.weight.T)
    shares = torch.stack(numbers).sigmoid()
    return shares * torch.tensor([0.9, torch.pi], dtype=x.dtype)


def _memory_by_loops(memory, x, context):
    queries, mixed = memory.projection(x).split(memory.parts, -1)
    gate, write, pole = memory.to_gates(context).split(memory.gate_parts, -1)
    mixed = _short_conv(mixed, memory.short_conv.kernel)
    state = torch.zeros(2, 3, 5, dtype=x.dtype)
    outputs = []
    for t in range(len(x)):
        heads = []
        for head in range(2):
            q = queries[t].unflatten(-1, (2, 3))[head]
            k, v = mixed[t].unflatten(-1, (2, 8))[head].split([3, 5])
            rho = (pole[t, head] + memory.decay_bias[head]).sigmoid()
            beta = (write[t, head] + memory.write_bias[head]).sigmoid()
            state[head] = rho * state[head] + beta * torch.outer(k / k.norm(), v)
            read = (q / q.norm()) @ state[head] + memory.skip[head] * v
            heads.append(memory.norm(read * functional.silu(gate[t].unflatten(-1, (2, 5))[head])))
        outputs.append(torch.cat(heads))
    return torch.stack(outputs)


def _short_conv(x, kernel):
    padded = functional.pad(x, (0, 0, len(kernel) - 1, 0))
    return sum(
        tap * padded[len(kernel) - 1 - i : len(kernel) - 1 - i + len(x)]
        for i, tap in enumerate(kernel)
    )


def test_the_gates_as_printed_mix_the_candidate_with_the_input():
    """In a block: the input as it came, whose norm the rest of the mixer reads."""
    options = dict(SMALL, associative_heads=0, conv_width=0, skip=False)
    ours, printed = (
        FocusConfig(**options, published_gates=each).build().double() for each in (False, True)
    )
    with torch.no_grad():  # W_phi is last, and 0: the share becomes one half
        for name, tensor in ours.named_parameters():
            target = printed.get_parameter(name).zero_()
            target[: len(tensor)] = tensor
    x = 3 * torch.randn(1, 21, 8, dtype=torch.float64)
    y, _ = Block(printed, 8, 0)(x)
    normed = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    expected = (functional.silu(ours(normed)[0]) + x) / 2
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)


def test_poles_that_do_not_turn_are_first_order_averages():
    mixer = FocusConfig(**SMALL, turning=False, filters=2).build()
    coefficients = mixer.coefficients(torch.randn(1, 24, 8))
    assert (coefficients[..., 1] == 0).all()
    assert mixer.filters.base.shape[-1] == 1

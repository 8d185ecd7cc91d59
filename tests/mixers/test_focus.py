"""Facts about Focus beyond the contract."""

from __future__ import annotations

import cmath

import pytest
import torch
from torch import nn
from torch.nn import functional

from polewise import Focus, FocusConfig, Mamba2Config, states
from polewise.filters import is_stable
from polewise.layers import AdaptiveFilters, RecurrentEmbedder
from polewise.ops import associative_filter

SMALL = {
    "dim": 8, "chunk_length": 8, "bin_length": 8, "windows": 2, "filters": 1,
    "hypernetwork": "recurrent",
}  # fmt: skip


@pytest.mark.parametrize(
    ("num_layers", "every", "memories"),
    [(1, 6, [0]), (2, 6, [0]), (6, 6, [2]), (10, 6, [2, 7]), (7, 3, [1, 3, 5]), (3, 1, [0, 1, 2])],
)
def test_one_layer_of_so_many_has_a_memory(num_layers, every, memories):
    config = FocusConfig(dim=8, memory_every=every)
    layers = [config.in_layer(layer, num_layers) for layer in range(num_layers)]
    assert [layer for layer, each in enumerate(layers) if each.memory] == memories
    assert all(each.filters == (0 if each.memory else 1) for each in layers)


def test_without_any_memory_no_layer_is_changed():
    config = FocusConfig(dim=8, memory=False, chunk_length=4)
    assert config.in_layer(0, 3) is config


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


@pytest.mark.parametrize("realisation", ["normal", "direct", "square"])
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


def test_a_new_mixer_hands_on_what_followed_its_like():
    """The last token was there before. Change what came just after it then, and the output moves
    the same way; change what came after another, and it does not."""
    torch.manual_seed(3)
    rows, length = 1000, 24
    mixer, row = FocusConfig(dim=64).build(), torch.arange(rows)
    x = 8 * functional.normalize(torch.randn(rows, length, 64), dim=-1)
    like = torch.randint(0, length - 6, (rows,))
    x[:, -1] = x[row, like]
    effects = []
    for place in (like + 1, (like + length // 2) % (length - 6) + 1):
        changed = x.clone()
        changed[row, place] = 8 * functional.normalize(torch.randn(rows, 64), dim=-1)
        with torch.no_grad():
            moved = mixer(changed)[0][:, -1] - mixer(x)[0][:, -1]
        effects.append((moved * (changed - x)[row, place]).sum(-1))
    more = effects[0] - effects[1]
    assert more.mean() > 3 * more.std() / rows**0.5


def test_what_a_new_copy_hands_on_is_heard_beside_the_skip_of_other_heads(monkeypatch):
    loud = []

    def listening(*args, **options):
        y, state = associative_filter(*args, **options)
        loud.append(y[:, -1].square().mean((0, 2)).sqrt())
        return y, state

    monkeypatch.setattr("polewise.mixers.focus.associative_filter", listening)
    torch.manual_seed(0)
    mixer = FocusConfig(dim=64).build()
    mixer(torch.randn(64, 128, 64))
    others, copy = loud[0]
    assert copy > others / 6  # a tenth with the step of other heads


@pytest.mark.parametrize("dim", [32, 64, 96])
def test_maps_of_copies_keep_angles(dim):
    """Of the keys, and of the values of heads that copy; in channels where these are fewer."""
    mixer = FocusConfig(dim=dim, heads=2).build()
    values = mixer.to_values.weight.unflatten(0, (2, -1))[mixer.copying.start]
    for rows in (mixer.to_lookup.weight[: mixer.config.key_dim], values):
        between = rows @ rows.T if len(rows) <= dim else rows.T @ rows
        size = between.diagonal().mean()
        torch.testing.assert_close(between / size, torch.eye(len(between)), atol=1e-5, rtol=0)
        spread = rows.std().item() * (3 * dim) ** 0.5  # over that of any new linear map
        assert spread == pytest.approx(1, abs=0.1)


def test_the_state_does_not_grow():
    mixer = FocusConfig(**SMALL).build()
    sizes = {states.num_bytes(mixer(torch.randn(1, length, 8))[1]) for length in (1, 9, 100)}
    assert len(sizes) == 1


def test_focus_without_hypernetwork_ignores_the_input_when_placing_poles():
    mixer = FocusConfig(**SMALL | {"hypernetwork": "none"}).build()
    one, other = (mixer.coefficients(torch.randn(1, 24, 8)) for _ in range(2))
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"bin_length": 10, "windows": 4, "hypernetwork": "recurrent"},
            "bin_length must be a multiple of windows; got 10 and 4",
        ),
        ({"heads": 0}, "heads must be an integer of at least 1"),
        ({"value_dim": 0}, "value_dim must be an integer of at least 1"),
        ({"conv_width": 0}, "conv_width must be an integer of at least 1"),
        ({"realisation": "norml"}, "Did you mean 'normal'"),
        ({"chunk_length": -1}, "chunk_length must be an integer of at least 0"),
        ({"turning": False, "realisation": "direct"}, "turning must be True"),
        ({"max_decay": 1.0}, "max_decay must lie between 0 and 1"),
        ({"causal": False, "sliding": True}, "sliding must be False without causal"),
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
    with pytest.raises(
        ValueError, match="state must come from a mixer with 2 filters; got one of 1"
    ):
        FocusConfig(**SMALL | {"filters": 2}).build()(torch.randn(1, 5, 8), state)
    bare = FocusConfig(**SMALL | {"filters": 0, "memory": False}).build()
    with pytest.raises(ValueError, match="filters must be at least 1, or memory True"):
        bare.coefficients(torch.randn(1, 5, 8))


def test_rows_longer_than_their_segment_end_with_it():
    mixer, x = FocusConfig(**SMALL).build(), torch.randn(2, 5, 8)
    y, state = mixer(x, lengths=torch.tensor([5, 5]))
    longer, after = mixer(x, lengths=torch.tensor([99, 5]))
    assert torch.equal(longer, y)
    for ours, theirs in zip(states.tensors(after), states.tensors(state), strict=True):
        assert torch.equal(ours, theirs)


def test_only_distances_count_however_far_the_sequence_is():
    torch.manual_seed(0)
    mixer, x = FocusConfig(dim=8, heads=2).build(), torch.randn(1, 40, 8)
    _, start = mixer(x[:, :0])
    late = start._replace(position=start.position + 1_000_000)
    torch.testing.assert_close(mixer(x, late)[0], mixer(x)[0], rtol=1e-5, atol=1e-6)


DEFAULT = {"hypernetwork": "none", "filters": 0, "chunk_length": 0}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shared_keys": False},
        {"memory_turning": False},
        {"shared_keys": False, "memory_turning": False},
        DEFAULT,
        DEFAULT | {"memory": False, "filters": 1},
    ],
    ids=["all", "keys of heads", "no turning", "neither", "a memory", "filters"],
)
def test_focus_is_its_equations_step_by_step(options):
    torch.manual_seed(0)
    sizes = {"heads": 2, "key_dim": 3, "value_dim": 4, "max_decay": 0.9}
    mixer = FocusConfig(**SMALL | sizes | options).build()
    mixer = mixer.double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        x = torch.randn(1, 21, 8, dtype=torch.float64)
        torch.testing.assert_close(mixer(x)[0][0], _by_loops(mixer, x[0]), rtol=1e-9, atol=1e-11)


def test_heads_that_copy_do_not_turn():
    x = torch.randn(1, 5, 16)
    angle = FocusConfig(dim=16, heads=4).build().coefficients(x)[..., 1]
    assert (angle[:, :, 2] == 0).all()
    assert (angle[:, :, [0, 1, 3]] > 0).all()
    alone = FocusConfig(dim=16, heads=1).build()  # it copies
    assert alone.log_frequency is None
    assert (alone.coefficients(x)[..., 1] == 0).all()


def _by_loops(mixer, x):
    """Focus with chunks and bins of 8, two heads of 4 values, keys of 3: a step at a time."""
    value, gate = mixer.to_values(x), mixer.to_gate(x)
    if mixer.to_lookup is not None:
        query, key, pole = mixer.to_lookup(x).split(mixer.lookup_parts, -1)
        key = _short_conv(key, mixer.key_conv.kernel) + mixer.key_conv.bias
    value = functional.silu(_short_conv(value, mixer.value_conv.kernel) + mixer.value_conv.bias)
    coefficients = _coefficients_by_loops(mixer, value) if mixer.filters else None
    memory = torch.zeros(2, 2, 4, dtype=torch.complex128)
    turns = torch.zeros(1, dtype=x.dtype)
    if mixer.log_frequency is not None:
        turns = mixer.log_frequency.exp()
    still = [False, True]  # the second of two heads begins as a copy: its products do not turn
    states, outputs = [0j] * 8, []
    for t in range(len(x)):
        filtered = torch.zeros(8, dtype=x.dtype)
        for channel in range(8 if mixer.filters else 0):
            decay, angle = coefficients[t // 8, channel].tolist()
            states[channel] = decay * cmath.exp(1j * angle) * states[channel]
            states[channel] += value[t, channel].item()
            c0, c1 = mixer.filters.mix[0, 0, channel].tolist()
            gain = (1 - decay**2) ** 0.5
            filtered[channel] = gain * (c0 * states[channel].real + c1 * states[channel].imag)
        heads = []
        for head in range(2):
            values = value.unflatten(-1, (2, 4))[:, head]
            passing = mixer.skip[head] * values[t] + filtered.unflatten(-1, (2, 4))[head]
            if not mixer.config.memory:
                heads.append(passing)
                continue
            look = 0 if mixer.config.shared_keys else head
            q = query[t].unflatten(-1, (-1, 3))[look]
            seen = key[t // 8 * 8 : t + 1].unflatten(-1, (-1, 3))[:, look]
            step = (1 + (pole[t, head] + mixer.step.bias[head]).exp()).log()
            radius = (-step * mixer.log_rate[head].exp()).exp()
            turn = 0 * turns[0] if still[head] else turns[0]
            poles = torch.stack([torch.polar(radius, turn), radius + 0j])
            product = torch.outer(_pairs(seen[-1]), step * values[t])
            memory[head] = poles[:, None] * memory[head] + product
            recalled = (_pairs(q).conj() @ memory[head]).real
            if mixer.attention_gain is None:
                heads.append(recalled + passing)
                continue
            distance = torch.arange(len(seen) - 1, -1, -1)
            turned = torch.stack([_pairs(k) for k in seen])
            turned[:, 0] *= torch.polar(torch.ones(()).double(), distance * turns[0])
            logits = (turned @ _pairs(q).conj()).real / 3**0.5
            logits = logits + mixer.position_bias()[look, distance]
            near = logits.softmax(0) @ values[t // 8 * 8 : t + 1]
            heads.append(recalled + mixer.attention_gain[head] * near + passing)
        u = torch.cat(heads) * functional.silu(gate[t])
        outputs.append(mixer.norm.weight * u / (u.square().mean() + 1e-5).sqrt())
    return mixer.to_output(torch.stack(outputs))


def _pairs(key):
    """Three channels: a pair that turns, as one complex number, and one that does not."""
    return torch.stack([torch.complex(key[0], key[1]), key[2] + 0j])


def _coefficients_by_loops(mixer, x):
    """Poles of every bin of 8: averages, maxima of the two halves of the bin before, a network."""
    network, base = mixer.filters.to_poles, mixer.filters.base[:, 0]
    limits = torch.tensor([0.9, torch.pi], dtype=x.dtype)
    if network is None:
        return base.sigmoid().expand(-(-len(x) // 8), -1, -1) * limits
    embedder = mixer.features.embedder
    decays = embedder.logit.sigmoid()
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
    return torch.stack(numbers).sigmoid() * limits


def _short_conv(x, kernel):
    padded = functional.pad(x, (0, 0, len(kernel) - 1, 0))
    return sum(
        tap * padded[len(kernel) - 1 - i : len(kernel) - 1 - i + len(x)]
        for i, tap in enumerate(kernel)
    )


def test_poles_that_do_not_turn_are_first_order_averages():
    mixer = FocusConfig(**SMALL | {"turning": False, "filters": 2}).build()
    coefficients = mixer.coefficients(torch.randn(1, 24, 8))
    assert (coefficients[..., 1] == 0).all()
    assert mixer.filters.base.shape[-1] == 1


@pytest.mark.parametrize(("memory", "share"), [(True, 0.1), (False, 1.0)])
def test_filters_and_attention_begin_small_beside_a_memory_and_whole_without(memory, share):
    mixer = FocusConfig(**SMALL | {"filters": 4}, memory=memory).build()
    torch.testing.assert_close(mixer.attention_gain, torch.full_like(mixer.attention_gain, share))
    together = mixer.filters.mix[0, ..., 0].square().sum(0).sqrt()
    torch.testing.assert_close(together, torch.full_like(together, share))


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("heads", [1, 2, 4, 8])
def test_a_quarter_of_the_heads_begins_with_what_is_filtered_and_nothing_else(memory, heads):
    filters = 0 if memory else 1
    mixer = FocusConfig(dim=32, heads=heads, memory=memory, filters=filters).build()
    alone = int(memory) if heads == 1 else max(heads // 4, 1)
    assert sorted(mixer.skip.tolist()) == [0] * alone + [1] * (heads - alone)
    assert FocusConfig(dim=32, heads=heads, memory=False).build().skip.all()  # nothing is filtered


@pytest.mark.parametrize("config", [FocusConfig(dim=32), Mamba2Config(dim=32)])
def test_an_output_map_that_is_watched_or_replaced_is_called(config):
    mixer, x, seen = config.build(), torch.randn(2, 9, 32), []
    plain, _ = mixer(x)
    hook = mixer.to_output.register_forward_hook(lambda module, given, y: seen.append(y))
    watched, _ = mixer(x)
    hook.remove()
    assert len(seen) == 1
    torch.testing.assert_close(watched, plain)
    output = mixer.to_output
    mixer.to_output = nn.Sequential(output, nn.Tanh())
    torch.testing.assert_close(mixer(x)[0], plain.tanh())
    mixer.to_output = output
    hook = mixer.norm.register_forward_hook(lambda module, given, y: 2 * y)
    torch.testing.assert_close(mixer(x)[0], 2 * plain)
    hook.remove()
    torch.testing.assert_close(mixer(x)[0], plain)
    output.forward = torch.ones_like  # as tools do that fetch weights for the call
    assert (mixer(x)[0] == 1).all()
    del output.forward
    mixer.norm.forward = torch.zeros_like
    assert (mixer(x)[0] == 0).all()


def test_watching_a_map_changes_no_bit_in_half_precision():
    mixer, x = FocusConfig(dim=32).build().bfloat16(), torch.randn(2, 9, 32).bfloat16()
    plain, _ = mixer(x)
    mixer.to_output.register_forward_hook(lambda module, given, y: None)
    assert torch.equal(mixer(x)[0], plain)


def test_filters_that_look_both_ways_do_not_see_padding():
    torch.manual_seed(0)
    filters = AdaptiveFilters(3, 1, 4, causal=False)
    x, start = torch.randn(1, 9, 3), torch.zeros(1, dtype=torch.int64)
    x[0, 5:] = torch.nan
    y, _ = filters(x, None, start, torch.tensor([5]))
    alone, _ = filters(x[:, :5], None, start)
    torch.testing.assert_close(y[:, :5], alone)


def test_a_memory_of_the_hypernetwork_that_rounds_to_endless_has_a_gradient():
    embedder = RecurrentEmbedder(2)
    with torch.no_grad():
        embedder.logit.fill_(18)
    y, _ = embedder(torch.ones(1, 5, 2))
    y.sum().backward()
    assert torch.isfinite(embedder.logit.grad).all()

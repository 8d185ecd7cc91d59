"""Facts about Focus beyond the contract."""

from __future__ import annotations

import pytest
import torch

from polewise import Focus, FocusConfig
from polewise.filters import is_stable

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
            mixer.base.fill_(size)
        coefficients = mixer.coefficients(torch.randn(1, 24, 8))
        if realisation == "normal":
            assert (coefficients[..., 0] <= mixer.config.max_decay).all()
        else:
            assert is_stable(coefficients).all()


def test_the_state_does_not_grow():
    from polewise.states import num_bytes

    mixer = FocusConfig(**SMALL).build()
    sizes = {num_bytes(mixer(torch.randn(1, length, 8))[1]) for length in (1, 9, 100)}
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
        ({"realisation": "norml"}, "Did you mean 'normal'"),
        ({"chunk_length": 0}, "chunk_length must be at least 1"),
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

"""Facts about a model that reads piece by piece: its state, in memory and in a file."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch
from tests.models.small_models import FORMS, language_model, tokens, written

from polewise import generate, states

pytest.importorskip("transformers")


@pytest.mark.parametrize(("mixer", "options"), FORMS)
@pytest.mark.parametrize("prefill", [0, 1, 13])
def test_token_by_token_gives_the_logits_of_one_pass(mixer, options, prefill):
    model = language_model(mixer, **options).double()
    ids = tokens(2, 41)
    logits, state = model.step(ids[:, :prefill])
    parts = [logits]
    for t in range(prefill, 41):
        logits, state = model.step(ids[:, t : t + 1], state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), model(ids).logits, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("cuts", [[1, 2, 3], [10], [7, 8, 20, 20]])
def test_any_split_of_a_text_gives_the_logits_of_one_pass(cuts):
    model = language_model()
    ids = tokens(2, 33)
    whole = model(ids).logits
    edges, state, parts = [0, *cuts, 33], None, []
    for begin, end in itertools.pairwise(edges):
        logits, state = model.step(ids[:, begin:end], state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("mixer", "options"), FORMS)
def test_rows_that_skip_a_step_hold_their_state(mixer, options):
    model = language_model(mixer, **options).double()
    ids = tokens(2, 25)
    mask = torch.ones(2, 25, dtype=torch.long)
    mask[0, [0, 1, 9, 20]] = 0
    output, cache = [], None
    for begin, end in itertools.pairwise([0, 6, 7, 8, 9, 10, 19, 20, 21, 25]):
        step = model(ids[:, begin:end], attention_mask=mask[:, :end], cache=cache, use_cache=True)
        cache = step.cache
        output.append(step.logits)
    logits = torch.cat(output, 1)
    kept = mask[0].bool()
    alone = model(ids[:1, kept]).logits
    torch.testing.assert_close(logits[:1, kept], alone, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(logits[1:], model(ids[1:]).logits, rtol=1e-10, atol=1e-10)
    assert cache.get_seq_length() == 25


def test_the_size_of_the_state_does_not_grow_with_what_was_read(model):
    sizes = [model.state_num_bytes(batch=1, length=length) for length in (1, 100, 1000)]
    assert sizes[0] == sizes[1] == sizes[2] == states.num_bytes(model.initial_state(1))


@pytest.mark.parametrize(
    "other",
    [
        {"mixer": "mamba2"},
        {"heads": 2},
        {"filters": 2},
        {"windows": 1},
        {"chunk_length": 16},
    ],
)
def test_the_state_of_another_model_is_refused_by_name(model, other):
    theirs = language_model(**other).step(tokens(1, 4))[1]
    with pytest.raises(ValueError, match=r"state\.layers\[0\].* this model"):
        model.step(tokens(1, 4), theirs)


def test_the_state_of_a_deeper_model_is_refused_by_name(model):
    _, state = model.step(tokens(1, 4))
    deeper = state._replace(layers=state.layers * 2)
    with pytest.raises(ValueError, match=r"state.layers must be a tuple of 2"):
        model.step(tokens(1, 4), deeper)


def test_the_state_of_another_batch_is_refused_by_name(model):
    _, state = model.step(tokens(2, 4))
    with pytest.raises(ValueError, match=r"state.* must have shape \(3.*got \(2"):
        model.step(tokens(3, 4), state)


def test_a_compiled_step_writes_the_same_and_is_not_saved_twice():
    model, ids = language_model(), tokens(1, 9)
    wanted, names = written(model, ids), set(model.state_dict())
    model.compile_step(backend="eager")
    assert torch.equal(written(model, ids), wanted)
    assert list(generate(model, ids, 12, temperature=0)) == wanted[0].tolist()
    assert set(model.state_dict()) == names
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert written(other, ids).unique().numel() == 1
    assert torch.equal(written(model, ids), wanted)


@torch._dynamo.config.patch(recompile_limit=2)
def test_steps_that_torch_compiles_no_more_are_read_as_before():
    torch.compiler.reset()
    model = language_model()
    wanted = [written(model, tokens(batch, 5)) for batch in range(1, 6)]
    model.compile_step(backend="eager")
    for batch, expected in enumerate(wanted, start=1):
        assert torch.equal(written(model, tokens(batch, 5)), expected)
    assert {batch for batch, *_ in model.model._not_compiled} >= {3, 4, 5}
    torch.compiler.reset()


def test_a_single_step_is_compiled_only_where_steps_are_alike():
    with pytest.raises(ValueError, match="state of constant size; that of mixer='attention'"):
        language_model("attention").compile_step()


def test_a_state_goes_to_a_file_and_back(model, tmp_path):
    ids = tokens(1, 20)
    _, state = model.step(ids[:, :9])
    states.save(state, tmp_path / "state")
    again = states.load(tmp_path / "state", model.initial_state(1))
    assert torch.equal(model.step(ids[:, 9:], again)[0], model.step(ids[:, 9:], state)[0])
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    with pytest.raises(ValueError, match="must hold the"):
        states.load(tmp_path / "state", language_model(memory=False).initial_state(1))
    with pytest.raises(ValueError, match="must have shape"):
        states.load(tmp_path / "state", language_model(chunk_length=16).initial_state(1))


LIARS = [
    b'{"0": {"dtype": "F32", "shape": [%d], "data_offsets": [0, 4000000000000]}}' % 10**12,
    b'{"0": {"dtype": "F32", "shape": [0, %d], "data_offsets": [0, 0]}}' % 2**63,
]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a state",
        b"the x",
        b"a x",
        b"s",
        b"h\x01",
        b".",
        b"\x80\x02.",
        b"PK\x05\x06" + 18 * b"\0",
        pickle.dumps([torch.ones(2)]),
        8 * b"\xff" + b"{}",
        *(len(header).to_bytes(8, "little") + header for header in LIARS),
    ],
)
def test_a_file_that_is_no_state_is_refused_whatever_it_says(content, model, tmp_path):
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(ValueError, match="is not a state"):
        states.load(tmp_path / "other", model.initial_state(1))

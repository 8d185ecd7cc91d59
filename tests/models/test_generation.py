"""Facts about writing: transformers' `generate`, and our own."""

from __future__ import annotations

import pytest
import torch
from tests.models.small_models import FORMS, language_model, tokens, written

from polewise import PolewiseCache, generate, states

transformers = pytest.importorskip("transformers")


def test_generation_follows_the_parallel_pass_here_and_in_transformers():
    model, ids = language_model(), tokens(1, 11)
    drawn = list(generate(model, ids, 12, temperature=0))
    grown = ids
    for token in drawn:
        assert model(grown).logits[0, -1].argmax() == token
        grown = torch.cat([grown, torch.tensor([[token]])], 1)
    theirs = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0
    )
    assert theirs[0, 11:].tolist() == drawn


@pytest.mark.parametrize(("mixer", "options"), FORMS)
def test_generation_with_a_cache_writes_what_it_writes_without(mixer, options):
    model = language_model(mixer, **options)
    ids = tokens(2, 11)
    assert torch.equal(written(model, ids), written(model, ids, use_cache=False))
    beams = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 8}
    assert torch.equal(written(model, ids, **beams), written(model, ids, **beams, use_cache=False))


def test_sampling_with_a_cache_draws_what_it_draws_without(model):
    drawn = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        drawn.append(written(model, tokens(2, 7), do_sample=True, top_k=5, use_cache=use_cache))
    assert torch.equal(*drawn)


def test_a_left_padded_batch_writes_what_each_prompt_writes_alone(model):
    lengths = torch.randint(1, 30, (100,), generator=torch.Generator().manual_seed(5)).tolist()
    prompts = [tokens(1, length, seed=i) for i, length in enumerate(lengths)]
    ids = torch.zeros(100, 30, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, 30 - prompt.shape[1] :] = prompt
        mask[row, 30 - prompt.shape[1] :] = 1
    together = written(model, ids, attention_mask=mask)
    for row, prompt in enumerate(prompts):
        assert written(model, prompt)[0].tolist() == together[row].tolist()


def test_a_mask_is_read_with_the_prompt_and_not_after_it(model):
    ids = tokens(2, 9)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    seen = []
    hook = model.register_forward_pre_hook(
        lambda _, __, given: seen.append(given.get("attention_mask") is not None), with_kwargs=True
    )
    wanted = written(model, ids, attention_mask=mask)
    assert seen == [True] + [False] * (len(seen) - 1)
    assert len(seen) > 1
    hook.remove()
    for size in (1, 2, 4):
        pieces = written(model, ids, attention_mask=mask, prefill_chunk_size=size)
        assert torch.equal(pieces, wanted)


def test_a_prompt_may_be_read_in_pieces_or_as_embeddings(model):
    ids = tokens(2, 21)
    wanted = written(model, ids)
    assert torch.equal(written(model, ids, prefill_chunk_size=5), wanted)
    embeds = model.model.embed(ids)
    mask = torch.ones_like(ids)
    given = {"max_new_tokens": 12, "do_sample": False, "attention_mask": mask}
    assert torch.equal(model.generate(inputs_embeds=embeds, **given), wanted)


def test_what_generation_cannot_go_on_from_is_explained(model):
    ids = tokens(1, 9)
    _, state = model.step(ids)
    with pytest.raises(TypeError, match=r"cache must be a PolewiseCache; got BackboneState"):
        model.generate(ids, cache=state, max_new_tokens=2)
    with pytest.raises(ValueError, match="use_cache must be True where a cache is passed"):
        model.generate(ids, cache=PolewiseCache(), use_cache=False, max_new_tokens=2)
    with pytest.raises(ValueError, match="prefill_chunk_size must be None beside inputs_embeds"):
        model.generate(inputs_embeds=model.model.embed(ids), prefill_chunk_size=3, max_new_tokens=2)


def test_beams_return_no_cache_and_take_one_with_their_rows(model):
    ids = tokens(2, 6)
    beams = {"num_beams": 3, "do_sample": False, "max_new_tokens": 4}
    found = model.generate(ids, **beams, return_dict_in_generate=True)
    assert "cache" not in found
    assert found.sequences.shape == (2, 10)
    read = model(ids[:, :4], use_cache=True).cache
    with pytest.raises(
        ValueError, match=r"Repeat its rows first, cache\.batch_repeat_interleave\(3\)"
    ):
        model.generate(ids, cache=read, **beams)
    with pytest.raises(ValueError, match=r"a row for each of 3 sequences; got 2\.$"):
        model.generate(tokens(3, 6), cache=read.copy(), max_new_tokens=2)
    read.batch_repeat_interleave(3)
    assert torch.equal(model.generate(ids, cache=read, **beams), found.sequences)


@pytest.mark.parametrize("whole_text", [True, False])
def test_generation_goes_on_from_a_returned_cache(model, whole_text):
    ids = tokens(1, 9)
    once = model.generate(ids, max_new_tokens=20, do_sample=False)
    first = model.generate(
        ids, max_new_tokens=8, do_sample=False, return_dict_in_generate=True, use_cache=True
    )
    cache = first.cache
    assert cache.get_seq_length() == 9 + 8 - 1
    given = first.sequences if whole_text else first.sequences[:, -1:]
    mask = torch.ones(1, 17, dtype=torch.long)
    more = model.generate(
        given, attention_mask=mask, max_new_tokens=12, do_sample=False, cache=cache
    )
    assert more[0, -12:].tolist() == once[0, -12:].tolist()
    # Random weights mostly say the last token again; that no token was read twice says more.
    assert cache.get_seq_length() == 9 + 20 - 1
    read = model(once[:, :-1], use_cache=True).cache
    for ours, theirs in zip(*map(states.tensors, (cache.state, read.state)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_going_on_needs_the_whole_text_or_a_mask_over_it(name, model):
    ids = tokens(1, 6)
    cache = model(ids, use_cache=True).cache
    for again in (ids, ids[:, :2]):
        with pytest.raises(ValueError, match="the cache has read 6 columns"):
            model.generate(again, max_new_tokens=2, **{name: cache})


def test_vectors_after_a_cache_must_be_the_whole_text(model):
    cache = model(tokens(1, 10), use_cache=True).cache
    vectors, mask = torch.randn(1, 5, model.config.hidden_size), torch.ones(1, 15)
    with pytest.raises(ValueError, match=r"inputs_embeds must be the whole text: the cache has"):
        model.generate(inputs_embeds=vectors, attention_mask=mask, cache=cache, max_new_tokens=2)


def test_a_streamer_hears_every_token(model):
    class Listener(transformers.generation.streamers.BaseStreamer):
        def __init__(self):
            self.heard = []

        def put(self, value):
            self.heard += value.flatten().tolist()

        def end(self):
            self.heard.append("end")

    listener = Listener()
    ids = tokens(1, 5)
    new = written(model, ids, streamer=listener)
    assert listener.heard == [*ids[0].tolist(), *new[0].tolist(), "end"]


@pytest.mark.parametrize("shape", [(1, 0), (0, 3)])
def test_an_empty_prompt_is_refused(model, shape):
    with pytest.raises(ValueError, match="input_ids must hold at least one row of at least one"):
        model.generate(torch.zeros(shape, dtype=torch.long), max_new_tokens=2)


def test_a_prompt_that_ends_in_padding_is_refused(model):
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    with pytest.raises(ValueError, match="Pad at the left"):
        model.generate(tokens(2, 3), attention_mask=mask, max_new_tokens=2)


def test_a_prompt_without_a_token_is_refused_by_its_row(model):
    mask = torch.tensor([[1, 1, 1], [0, 0, 0]])
    with pytest.raises(ValueError, match="nothing to go on from; row 1 has none"):
        model.generate(tokens(2, 3), attention_mask=mask, max_new_tokens=2)


def test_a_prompt_that_ends_in_the_padding_token_is_refused():
    model, ids = language_model(), tokens(2, 6)
    ids[ids == 29], ids[1, -1] = 3, 29
    with pytest.raises(ValueError, match="no row may end in the padding token"):
        model.generate(ids, pad_token_id=29, max_new_tokens=1)


def test_what_a_state_cannot_do_is_refused_with_the_reason(model):
    ids = tokens(1, 5)
    with pytest.raises(ValueError, match="assisted"):
        model.generate(ids, max_new_tokens=3, assistant_model=language_model())
    with pytest.raises(ValueError, match="cache_implementation must be left out"):
        model.generate(ids, max_new_tokens=3, cache_implementation="offloaded")
    with pytest.raises(ValueError, match="continuous batching"):
        model.generate_batch([ids[0].tolist()])
    with pytest.raises(ValueError, match="continuous batching"):
        model.init_continuous_batching()
    with pytest.raises(TypeError, match="input_ids must be a tensor"):
        model.generate(ids.tolist(), max_new_tokens=3)
    leaking = language_model("published_focus", realisation="circular", leak=True)
    with pytest.raises(ValueError, match="cannot stream"):
        leaking.generate(ids, max_new_tokens=3)
    assert written(leaking, ids, max_new_tokens=3, use_cache=False).shape == (1, 3)


def test_our_own_generate_goes_on_from_its_state(model):
    ids = tokens(1, 6)
    once = list(generate(model, ids, 20, temperature=0))
    first = generate(model, ids, 9, temperature=0)
    begun = list(first)
    unread = torch.cat([first.unread, torch.empty(1, 0, dtype=torch.long)], 1)
    rest = list(generate(model, unread, 11, temperature=0, state=first.state))
    assert begun + rest == once


class Always(torch.nn.Module):
    """Gives the same logits whatever it reads."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def step(self, ids, state):
        return self.logits.expand(1, ids.shape[1], -1), ids


@pytest.mark.parametrize(
    ("options", "shares"),
    [
        ({}, [0.1, 0.2, 0.3, 0.4]),
        ({"top_k": 2}, [0, 0, 3 / 7, 4 / 7]),
        ({"top_k": 9}, [0.1, 0.2, 0.3, 0.4]),
        ({"temperature": 0.5}, [1 / 30, 4 / 30, 9 / 30, 16 / 30]),
        ({"temperature": 0}, [0, 0, 0, 1]),
    ],
)
def test_our_own_generate_draws_by_temperature_and_among_the_likeliest(options, shares):
    model = Always([0.1, 0.2, 0.3, 0.4])
    model.logits = model.logits.log()
    generator = torch.Generator().manual_seed(0)
    drawn = list(generate(model, tokens(1, 1), 4000, generator=generator, **options))
    found = torch.bincount(torch.tensor(drawn), minlength=4) / 4000
    torch.testing.assert_close(found, torch.tensor(shares).float(), rtol=0, atol=0.03)
    assert not found[[share == 0 for share in shares]].any()


def test_a_temperature_near_zero_takes_the_likeliest(model):
    ids = tokens(1, 5)
    likeliest = list(generate(model, ids, 8, temperature=0))
    assert list(generate(model, ids, 8, temperature=1e-40)) == likeliest


def test_generation_names_a_bad_argument():
    model = language_model()
    with pytest.raises(ValueError, match="prompt must be one row"):
        generate(model, tokens(1, 0), 3)
    with pytest.raises(ValueError, match="temperature must be at least 0"):
        generate(model, tokens(1, 3), 3, temperature=-1)


def test_a_model_that_cannot_stream_is_refused_by_our_own_generate():
    leaking = language_model("published_focus", realisation="circular", leak=True)
    with pytest.raises(ValueError, match="model must stream"):
        list(generate(leaking, tokens(1, 5), 3))

"""Facts about a model that reads and writes piece by piece: state, cache, masks, packing."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch

from polewise import PolewiseConfig, PolewiseForCausalLM, generate, states

transformers = pytest.importorskip("transformers")

PUBLISHED = {
    "chunk_length": 8,
    "bin_length": 8,
    "windows": 2,
    "filters": 1,
    "hypernetwork": "recurrent",
}
SMALL = {"published_focus": PUBLISHED, "focus": PUBLISHED | {"memory_every": 1}}
FORMS = [
    ("focus", {}),
    ("focus", {"sliding": True, "heads": 2}),
    ("focus", {"filters": 2, "memory_turning": False, "shared_keys": False}),
    ("focus", {"realisation": "direct", "reset": True}),
    ("focus", {"hypernetwork": "none", "memory": False}),
    ("published_focus", {"hypernetwork": "shared_recurrent"}),
    ("focus", {"hypernetwork": "long_conv", "taps": 12}),
    ("focus", {"filters": 0, "chunk_length": 0}),
    ("focus", {"filters": 0, "chunk_length": 0, "hypernetwork": "none", "memory_every": 2}),
    ("attention", {"heads": 2}),
]


def language_model(mixer="focus", **options):
    torch.manual_seed(0)
    options = SMALL.get(mixer, {}) | options
    config = PolewiseConfig(
        mixer=mixer, mixer_options=options, hidden_size=8, num_hidden_layers=2,
        intermediate_size=12, vocab_size=30, pad_token_id=0,
        tie_word_embeddings=False,  # tied, the last token alone would decide most of the next
    )  # fmt: skip
    return PolewiseForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model():
    return language_model()


def tokens(*shape, seed=0):
    return torch.randint(1, 30, shape, generator=torch.Generator().manual_seed(seed))


def written(model, ids, **options):
    """The new tokens that transformers' generate writes."""
    options = {"max_new_tokens": 12, "do_sample": False} | options
    mask = options.pop("attention_mask", torch.ones_like(ids))
    return model.generate(ids, attention_mask=mask, **options)[:, ids.shape[1] :]


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


def test_a_prompt_may_be_read_in_pieces_or_as_embeddings(model):
    ids = tokens(2, 21)
    wanted = written(model, ids)
    assert torch.equal(written(model, ids, prefill_chunk_size=5), wanted)
    embeds = model.model.embed(ids)
    mask = torch.ones_like(ids)
    given = {"max_new_tokens": 12, "do_sample": False, "attention_mask": mask}
    assert torch.equal(model.generate(inputs_embeds=embeds, **given), wanted)


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


def test_a_cache_in_another_precision_goes_on_from_the_same_place(model):
    ids = tokens(2, 11)
    cache = model(ids[:, :7], use_cache=True).cache
    wide = cache.to(torch.float64)
    assert {leaf.dtype for leaf in states.tensors(wide.state)} <= {torch.float64, torch.int64}
    assert wide.get_seq_length() == cache.get_seq_length() == 7
    y = copy.deepcopy(model).double()(ids[:, 7:], cache=wide).logits
    torch.testing.assert_close(y.float(), model(ids).logits[:, 7:], rtol=1e-3, atol=1e-4)


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


def test_a_temperature_near_zero_takes_the_likeliest(model):
    ids = tokens(1, 5)
    likeliest = list(generate(model, ids, 8, temperature=0))
    assert list(generate(model, ids, 8, temperature=1e-40)) == likeliest


def test_vectors_after_a_cache_must_be_the_whole_text(model):
    cache = model(tokens(1, 10), use_cache=True).cache
    vectors, mask = torch.randn(1, 5, model.config.hidden_size), torch.ones(1, 15)
    with pytest.raises(ValueError, match=r"inputs_embeds must be the whole text: the cache has"):
        model.generate(inputs_embeds=vectors, attention_mask=mask, cache=cache, max_new_tokens=2)


def test_a_cache_may_be_given_by_its_former_name(model):
    first = model(tokens(1, 4), use_cache=True)
    before = first.past_key_values.copy()
    now = model(tokens(1, 1), cache=first.cache)
    with pytest.warns(FutureWarning, match="Use `cache` instead"):
        former = model(tokens(1, 1), past_key_values=before)
    assert former.cache is before
    torch.testing.assert_close(former.logits, now.logits, rtol=0, atol=0)


def test_a_snapshot_is_a_way_back(model):
    ids = tokens(2, 30)
    cache = model(ids[:, :10], use_cache=True).cache
    before = cache.copy()
    first = model(ids[:, 10:20], cache=cache).logits
    model(ids[:, 20:], cache=cache)
    assert (cache.get_seq_length(), before.get_seq_length()) == (30, 10)
    assert torch.equal(model(ids[:, 10:20], cache=before).logits, first)


def test_a_cache_can_be_reordered_repeated_cut_and_cleared(model):
    ids = tokens(3, 20)
    whole = model(ids).logits

    def read():
        return model(ids[:, :12], use_cache=True).cache

    cache = read()
    cache.reorder_cache(torch.tensor([2, 0, 1]))
    again = model(ids[[2, 0, 1], 12:], cache=cache).logits
    torch.testing.assert_close(again, whole[[2, 0, 1], 12:])
    cache = read()
    cache.batch_select_indices(torch.tensor([True, False, True]))
    assert cache.batch_size == 2
    torch.testing.assert_close(model(ids[[0, 2], 12:], cache=cache).logits, whole[[0, 2], 12:])
    cache = read()
    cache.batch_repeat_interleave(2)
    rows = [0, 0, 1, 1, 2, 2]
    torch.testing.assert_close(model(ids[rows, 12:], cache=cache).logits, whole[rows, 12:])
    cache.crop(0)
    with pytest.raises(ValueError, match=r"tokens_to_remove must be 0.*copy"):
        cache.crop(-1)
    cache.reset()
    assert (len(cache), cache.batch_size, cache.get_seq_length(), cache.num_bytes()) == (
        0,
        -1,
        0,
        0,
    )


def test_the_size_of_the_state_does_not_grow_with_what_was_read(model):
    sizes = [model.state_num_bytes(batch=1, length=length) for length in (1, 100, 1000)]
    assert sizes[0] == sizes[1] == sizes[2] == states.num_bytes(model.initial_state(1))


def test_training_returns_no_cache_and_evaluation_does(model):
    ids = tokens(1, 5)
    assert model(ids).cache.get_seq_length() == 5
    assert model(ids, use_cache=False).cache is None
    assert language_model().train()(ids).cache is None


# Masks and packing


def test_what_stands_under_a_mask_is_not_looked_at(model):
    ids, mask = tokens(1, 12), torch.ones(1, 12, dtype=torch.long)
    mask[0, [0, 5]] = 0
    wrong = ids.clone()
    wrong[0, [0, 5]] = torch.tensor([-100, 10**6])
    kept = mask[0].bool()
    logits = model(wrong, attention_mask=mask).logits[:, kept]
    torch.testing.assert_close(logits, model(ids[:, kept]).logits)


PACKED = torch.tensor([[0] * 7 + [1] + [2] * 11 + [-1] * 2, [5] * 20 + [6]])


@pytest.mark.parametrize(("mixer", "options"), FORMS)
def test_packed_documents_get_what_they_get_alone(mixer, options):
    model = language_model(mixer, **options).double()
    ids = tokens(2, 21)
    logits = model(ids, seq_idx=PACKED).logits
    for row, number in ((0, 0), (0, 1), (0, 2), (1, 5), (1, 6)):
        document = PACKED[row] == number
        alone = model(ids[row : row + 1, document]).logits
        torch.testing.assert_close(logits[row : row + 1, document], alone, rtol=1e-10, atol=1e-10)


def test_packed_documents_have_the_loss_and_gradients_of_separate_ones():
    ids = tokens(1, 18)
    documents = [ids[:, :7], ids[:, 7:18]]
    seq_idx = torch.tensor([[0] * 7 + [1] * 11])
    gradients = []
    for packed in (True, False):
        model = language_model().double()
        if packed:
            loss = model(ids, labels=ids, seq_idx=seq_idx).loss
        else:
            loss = sum(model(d, labels=d).loss * (d.shape[1] - 1) for d in documents) / 16
        loss.backward()
        gradients.append([loss, *(p.grad for p in model.parameters())])
    for ours, separate in zip(*gradients, strict=True):  # transformers' loss is in float32
        torch.testing.assert_close(ours, separate, rtol=1e-5, atol=1e-7)


def test_the_flattening_collator_packs_for_us(model):
    documents = [tokens(length, seed=length).tolist() for length in (4, 9, 1)]
    collate = transformers.DataCollatorWithFlattening(return_seq_idx=True)
    batch = collate([{"input_ids": document} for document in documents])
    output = model(**batch)
    alone = [model(torch.tensor([document])).logits for document in documents]
    torch.testing.assert_close(output.logits, torch.cat(alone, 1), rtol=1e-4, atol=1e-5)
    assert torch.isfinite(output.loss)


def test_a_batch_with_nothing_in_it_gives_nothing(model):
    none = torch.zeros(1, 0, dtype=torch.long)
    assert model(none).logits.shape == (1, 0, 30)
    assert model(none, seq_idx=none).logits.shape == (1, 0, 30)
    assert model(tokens(0, 5)).logits.shape == (0, 5, 30)


# What is refused, and how


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"attention_maks": 1}, TypeError, "unknown argument 'attention_maks'. Did you mean 'att"),
        ({"attention_mask": torch.ones(2, 4)}, ValueError, r"attention_mask must have .*\(2, 5\)"),
        ({"attention_mask": torch.ones(2, 1, 5, 5)}, ValueError, "attention_mask must have shape"),
        ({"seq_idx": torch.zeros(2, 4)}, ValueError, r"seq_idx must have shape .*\(2, 5\)"),
        (
            {"seq_idx": torch.zeros(2, 5), "attention_mask": torch.ones(2, 5)},
            ValueError,
            "seq_idx must stand alone",
        ),
        ({"position_ids": torch.tensor([[0, 1, 2, 0, 1]])}, ValueError, "position_ids .*seq_idx"),
        (
            {
                "position_ids": torch.tensor([[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]]),
                "attention_mask": torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]),
            },
            ValueError,
            "position_ids .*seq_idx",
        ),
        ({"positon_ids": None, "position_idz": 1}, TypeError, "Did you mean 'position_ids'"),
        ({"cu_seq_lens_q": torch.tensor([0, 3, 5])}, TypeError, "given as seq_idx"),
        ({"output_attentions": True}, ValueError, "output_attentions must be False"),
        ({"cache": "cache"}, TypeError, "cache must be a PolewiseCache"),
    ],
)
def test_an_argument_that_will_not_do_is_named(model, arguments, error, message):
    with pytest.raises(error, match=message):
        model(tokens(2, 5), **arguments)


def test_tokens_out_of_range_are_named(model):
    for ids in (torch.tensor([[1, 30]]), torch.tensor([[-1, 2]])):
        with pytest.raises(ValueError, match=r"input_ids must lie in \[0, 30\); got"):
            model(ids)
    with pytest.raises(ValueError, match=r"input_ids must have shape \(batch, length\)"):
        model(torch.tensor([1, 2]))


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


@pytest.mark.parametrize("shape", [(1, 0), (0, 3)])
def test_an_empty_prompt_is_refused(model, shape):
    with pytest.raises(ValueError, match="input_ids must hold at least one row of at least one"):
        model.generate(torch.zeros(shape, dtype=torch.long), max_new_tokens=2)


def test_what_a_state_cannot_do_is_refused_with_the_reason(model):
    ids = tokens(1, 5)
    with pytest.raises(ValueError, match="assisted"):
        model.generate(ids, max_new_tokens=3, assistant_model=language_model())
    with pytest.raises(ValueError, match="cache_implementation must be left out"):
        model.generate(ids, max_new_tokens=3, cache_implementation="offloaded")
    with pytest.raises(ValueError, match="continuous batching"):
        model.generate_batch([ids[0].tolist()])
    leaking = language_model("published_focus", realisation="circular", leak=True)
    with pytest.raises(ValueError, match="cannot stream"):
        leaking.generate(ids, max_new_tokens=3)
    assert written(leaking, ids, max_new_tokens=3, use_cache=False).shape == (1, 3)


def test_a_prompt_that_ends_in_padding_is_refused(model):
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    with pytest.raises(ValueError, match="Pad at the left"):
        model.generate(tokens(2, 3), attention_mask=mask, max_new_tokens=2)


def test_positions_that_rise_among_real_tokens_are_taken(model):
    positions, mask = torch.tensor([[1, 1, 0, 1, 2]]), torch.tensor([[0, 0, 1, 1, 1]])
    given = model(tokens(1, 5), attention_mask=mask, position_ids=positions).logits
    assert torch.equal(given, model(tokens(1, 5), attention_mask=mask).logits)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_going_on_needs_the_whole_text_or_a_mask_over_it(name, model):
    ids = tokens(1, 6)
    cache = model(ids, use_cache=True).cache
    for again in (ids, ids[:, :2]):
        with pytest.raises(ValueError, match="the cache has read 6 columns"):
            model.generate(again, max_new_tokens=2, **{name: cache})


def test_a_single_step_is_compiled_only_where_steps_are_alike():
    with pytest.raises(ValueError, match="state of constant size; that of mixer='attention'"):
        language_model("attention").compile_step()


def test_a_model_that_cannot_stream_is_refused_by_our_own_generate():
    leaking = language_model("published_focus", realisation="circular", leak=True)
    with pytest.raises(ValueError, match="model must stream"):
        list(generate(leaking, tokens(1, 5), 3))


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
    ],
)
def test_a_file_that_is_no_state_is_refused_whatever_it_says(content, model, tmp_path):
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(ValueError, match="is not a state"):
        states.load(tmp_path / "other", model.initial_state(1))


def test_the_name_of_a_state_file_says_nothing(model, tmp_path):
    _, state = model.step(tokens(1, 9))
    states.save(state, tmp_path / "x.safetensors")
    again = states.load(tmp_path / "x.safetensors", model.initial_state(1))
    for loaded, saved in zip(states.tensors(again), states.tensors(state), strict=True):
        assert torch.equal(loaded, saved)

"""Facts about the Hugging Face family."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import fields

import pytest
import torch
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional

from polewise import (
    MIXERS,
    FocusConfig,
    PolewiseConfig,
    PolewiseForCausalLM,
    PolewiseForForecasting,
    PolewiseForSequenceClassification,
    generate,
)
from polewise.models import PRESETS
from polewise.models.modeling import PolewisePreTrainedModel

transformers = pytest.importorskip("transformers")

FOCUS = {"chunk_length": 8, "bin_length": 8, "windows": 2, "hypernetwork": "recurrent"}
CAUSAL_FORMS = [
    {},
    {"sliding": True},
    {"filters": 2},
    {"realisation": "direct", "reset": True},
    {"hypernetwork": "none"},
    {"hypernetwork": "long_conv", "taps": 12},
    {"memory": False},
    {"memory_turning": False, "shared_keys": False, "heads": 2},
    {"filters": 0, "chunk_length": 0, "memory_every": 1},
]
PUBLISHED_FORMS = [
    {"hypernetwork": "shared_recurrent"},
    {"hypernetwork": "shared_long_conv", "taps": 12},
]


def language_model(mixer="focus", **options):
    torch.manual_seed(0)
    options = (FOCUS if "focus" in mixer else {}) | options
    config = PolewiseConfig(
        mixer=mixer, mixer_options=options, hidden_size=8, num_hidden_layers=2,
        intermediate_size=12, vocab_size=30,
    )  # fmt: skip
    return PolewiseForCausalLM(config)


def tokens(*shape):
    return torch.randint(0, 30, shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("mixer", "options"),
    [("focus", form) for form in CAUSAL_FORMS]
    + [("published_focus", form) for form in PUBLISHED_FORMS]
    + [("attention", {"heads": 2})],
)
def test_no_logit_of_the_whole_model_depends_on_a_later_input(mixer, options, training):
    model = language_model(mixer, **options).double().train(training)
    tolerance = 1e-12 if "long_conv" in options.get("hypernetwork", "") else 0
    for length in (1, 9, 21):
        x = torch.randn(1, length, 8, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(
            lambda x: model(inputs_embeds=x).logits.sum(-1)[0], x
        )[:, 0]
        jacobian = jacobian.abs().sum(-1)
        assert jacobian.triu(1).max() <= tolerance * jacobian.max()
        assert (jacobian.diagonal() > 0).all()


def test_nan_from_a_step_on_leaves_all_earlier_logits_as_they_are():
    model = language_model().double()
    x = torch.randn(1, 30, 8, dtype=torch.float64)
    clean = model(inputs_embeds=x).logits
    for t in (1, 13, 29):
        poisoned = x.clone()
        poisoned[:, t:] = float("nan")
        logits = model(inputs_embeds=poisoned).logits
        torch.testing.assert_close(logits[:, :t], clean[:, :t], rtol=1e-12, atol=1e-12)
        assert logits[:, t].isnan().all()


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


@pytest.mark.parametrize(
    ("preset", "adaptive", "static"),
    [
        ("published-focus-22m", 22_223_232, 21_173_248),
        ("published-focus-22m-noffn", 22_206_848, 21_156_864),
    ],
)
def test_presets_have_the_published_sizes(preset, adaptive, static):
    def count(**options):
        keys = PRESETS[preset]
        keys = keys | {"mixer_options": keys["mixer_options"] | options}
        with torch.device("meta"):
            model = PolewiseForCausalLM(PolewiseConfig(**keys))
        return sum(parameter.numel() for parameter in model.parameters())

    assert count() == adaptive
    assert count(hypernetwork="none") == static


def test_a_saved_model_names_its_mixer_and_every_option_of_it(tmp_path):
    PolewiseConfig().save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["mixer"] == "focus"
    assert {*written["mixer_options"], "dim"} == {each.name for each in fields(FocusConfig)}


def test_saving_and_loading_changes_nothing(tmp_path):
    model, ids = language_model().eval(), tokens(2, 20)
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(again, PolewiseForCausalLM)
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert again.config.mixer_options == model.config.mixer_options
    base = transformers.AutoModel.from_pretrained(tmp_path)
    assert torch.equal(base(ids).last_hidden_state, model.model(ids).last_hidden_state)
    half = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half(ids).logits.dtype == torch.bfloat16


def test_the_tied_output_layer_is_stored_once(tmp_path):
    from safetensors import safe_open

    language_model().save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as stored:
        names = set(stored.keys())
    assert "lm_head.weight" not in names
    assert "model.embed_tokens.weight" in names


def test_labels_give_the_loss_of_predicting_the_next_token():
    model, ids = language_model(), tokens(2, 20)
    output = model(ids, labels=ids)
    wanted = functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(output.loss, wanted)


@pytest.mark.parametrize("mixer", ["focus", "mamba2", "attention"])
@pytest.mark.parametrize("holes", [[0, 1, 2], [17, 18, 19], [3, 9, 10], []])
def test_a_masked_token_does_not_exist(mixer, holes):
    model = language_model(mixer, **({"heads": 2} if mixer == "attention" else {}))
    x = torch.randn(2, 20, 8)
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[0, holes] = 0
    poisoned = x.clone()
    poisoned[0, holes] = float("nan")
    logits = model(inputs_embeds=poisoned, attention_mask=mask).logits
    kept = mask[0].bool()
    alone = model(inputs_embeds=x[:1, kept]).logits
    torch.testing.assert_close(logits[:1, kept], alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits[1:], model(inputs_embeds=x[1:]).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("mixer", "width"), [("focus", 0), ("mamba2", 0), ("attention", 16), ("published_focus", 16)]
)
def test_a_feed_forward_is_left_out_beside_a_mixer_that_contains_one(mixer, width, tmp_path):
    config = PolewiseConfig(mixer=mixer, hidden_size=8, num_hidden_layers=1)
    assert config.intermediate_size == width
    assert (PolewiseForCausalLM(config).model.backbone.blocks[0].feed_forward is None) == (
        not width
    )
    config.save_pretrained(tmp_path)
    assert PolewiseConfig.from_pretrained(tmp_path).intermediate_size == width
    assert PolewiseConfig(mixer=mixer, hidden_size=8, intermediate_size=3).intermediate_size == 3


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"hiden_size": 8}, "Did you mean 'hidden_size'"),
        ({"mixer": "fokus"}, "Did you mean 'focus'"),
        ({"mixer_options": {"bin_lenght": 8}}, "Did you mean 'bin_length'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be an integer of at least 1"),
        ({"dropout": 1.5}, "dropout must lie in"),
    ],
)
def test_a_mistyped_key_is_refused_with_the_nearest_name(keys, message):
    with pytest.raises(ValueError, match=message):
        PolewiseConfig(**keys)


def test_activation_checkpointing_changes_no_gradient_and_runs_so_many_blocks_again():
    gradients, runs = [], []
    for every in (None, 1, 2):
        model, calls = language_model().train(), []
        for block in model.model.backbone.blocks:
            block.register_forward_pre_hook(lambda *_, calls=calls: calls.append(None))
        if every is not None:
            model.activation_checkpointing_enable(every_n_layers=every)
        ids = tokens(2, 20)
        model(ids, labels=ids).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
        runs.append(len(calls))
    assert runs == [2, 4, 3]
    for plain, *checkpointed in zip(*gradients, strict=True):
        for each in checkpointed:
            torch.testing.assert_close(each, plain)


def test_logits_to_keep_takes_the_last_or_the_chosen():
    model, ids = language_model(), tokens(2, 20)
    logits = model(ids).logits
    torch.testing.assert_close(model(ids, logits_to_keep=3).logits, logits[:, -3:])
    chosen = torch.tensor([0, 7])
    torch.testing.assert_close(model(ids, logits_to_keep=chosen).logits, logits[:, chosen])
    by_row = torch.tensor([[0, 7], [3, 19]])
    kept = model(ids, logits_to_keep=by_row).logits
    torch.testing.assert_close(kept, logits[torch.arange(2)[:, None], by_row])


def test_generation_follows_the_parallel_pass_here_and_in_transformers():
    model, ids = language_model().eval(), tokens(1, 11)
    drawn = list(generate(model, ids, 12, temperature=0))
    grown = ids
    for token in drawn:
        assert model(grown).logits[0, -1].argmax() == token
        grown = torch.cat([grown, torch.tensor([[token]])], 1)
    theirs = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0
    )
    assert theirs[0, 11:].tolist() == drawn


def test_generation_names_a_bad_argument():
    model = language_model()
    with pytest.raises(ValueError, match="prompt must be one row"):
        generate(model, tokens(1, 0), 3)
    with pytest.raises(ValueError, match="temperature must be at least 0"):
        generate(model, tokens(1, 3), 3, temperature=-1)


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_module_of_a_model_makes_its_own_start(mixer, monkeypatch):
    """Also those whose parameters are all their children's, and after their children."""
    started = []
    start = PolewisePreTrainedModel._init_weights
    monkeypatch.setattr(
        PolewisePreTrainedModel,
        "_init_weights",
        lambda model, module: (started.append(module), start(model, module)),
    )
    model = language_model(mixer, **({"filters": 1} if mixer == "focus" else {}))
    own = [each for each in model.modules() if hasattr(each, "reset_parameters")]
    order = {id(module): number for number, module in enumerate(started)}
    assert {id(module) for module in own} <= set(order)
    for module in own:
        assert all(order[id(module)] >= order.get(id(each), 0) for each in module.modules())


def test_the_network_that_places_poles_starts_near_their_base():
    model = language_model(filters=1, hidden=256)
    network = model.model.backbone.blocks[0].mixer.filters.to_poles
    assert (network.up.bias == 0).all()
    assert 0.08 < network.down.weight.std() < 0.12  # 0.1; torch's own start would have 0.04


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_classification_reads_numbers_and_ignores_padding(causal, pooling):
    torch.manual_seed(0)
    config = PolewiseConfig(
        num_input_features=2, num_labels=3, hidden_size=8, num_hidden_layers=1,
        mixer_options=FOCUS | {"causal": causal}, pooling=pooling,
    )  # fmt: skip
    model = PolewiseForSequenceClassification(config)
    x, mask = torch.randn(2, 20, 2), torch.ones(2, 20, dtype=torch.long)
    mask[1, 12:] = 0
    output = model(input_values=x, attention_mask=mask, labels=torch.tensor([0, 2]))
    assert torch.isfinite(output.loss)
    alone = model(input_values=x[1:, :12]).logits
    torch.testing.assert_close(output.logits[1:], alone, rtol=1e-4, atol=1e-5)


def test_numbers_of_another_shape_are_named_and_of_another_precision_read():
    config = PolewiseConfig(num_input_features=2, num_labels=3, hidden_size=8, num_hidden_layers=1)
    model = PolewiseForSequenceClassification(config)
    for shape in ((4, 20), (4, 20, 3)):
        with pytest.raises(ValueError, match=r"input_values must have shape \(batch, length, 2\)"):
            model(input_values=torch.zeros(shape))
    x = torch.randn(4, 20, 2, dtype=torch.float64)
    assert torch.equal(model(input_values=x).logits, model(input_values=x.float()).logits)


def test_numbers_under_a_mask_are_not_looked_at_in_training_either():
    torch.manual_seed(0)
    config = PolewiseConfig(
        num_input_features=2, num_labels=3, hidden_size=8, num_hidden_layers=1, mixer_options=FOCUS
    )
    model = PolewiseForSequenceClassification(config)
    x, mask = torch.randn(1, 9, 2), torch.ones(1, 9, dtype=torch.long)
    x[0, 3], mask[0, 3] = torch.nan, 0
    model(input_values=x, attention_mask=mask, labels=torch.tensor([1])).loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_who_asks_for_a_cache_of_a_classification_gets_none():
    config = PolewiseConfig(hidden_size=8, num_hidden_layers=1, mixer_options=FOCUS)
    model = PolewiseForSequenceClassification(config)
    torch.testing.assert_close(
        model(tokens(1, 9), use_cache=True).logits, model(tokens(1, 9)).logits
    )


def test_what_was_read_before_is_no_part_of_a_class():
    config = PolewiseConfig(hidden_size=8, num_hidden_layers=1, mixer_options=FOCUS)
    model = PolewiseForSequenceClassification(config)
    cache = model.model(tokens(1, 9), use_cache=True).cache
    with pytest.raises(ValueError, match="cache must be None"):
        model(tokens(1, 9), cache=cache)


def test_what_a_mask_hides_and_what_follows_it_is_no_target():
    model, ids = language_model(), tokens(2, 12)
    mask = torch.ones_like(ids)
    mask[0, :4], mask[1, 6] = 0, 0
    labels = ids.clone()
    labels[0, :5], labels[1, 6:8] = -100, -100
    expected = model(ids, attention_mask=mask, labels=labels).loss
    ids[0, :4] = 10**6  # not looked at, as a target either
    torch.testing.assert_close(model(ids, attention_mask=mask, labels=ids).loss, expected)
    # A Trainer has counted all labels but the first of each row, and divides by that.
    counted = model(ids, attention_mask=mask, labels=ids, num_items_in_batch=torch.tensor(22)).loss
    torch.testing.assert_close(counted, expected)


@pytest.mark.parametrize("kind", ["numbers", "several labels", "one of several"])
def test_a_share_of_a_larger_batch_is_a_share_of_its_loss(kind):
    """As a Trainer sums the losses of the parts that it accumulates."""
    labels = {
        "numbers": torch.randn(4),
        "several labels": torch.randint(0, 2, (4, 3)).float(),
        "one of several": torch.randint(0, 3, (4,)),
    }[kind]
    torch.manual_seed(0)
    config = PolewiseConfig(
        hidden_size=8, num_hidden_layers=1, vocab_size=30, mixer_options=FOCUS,
        num_labels=1 if kind == "numbers" else 3,
    )  # fmt: skip
    model, ids, count = PolewiseForSequenceClassification(config), tokens(4, 6), labels.numel()
    whole = model(ids, labels=labels).loss
    parts = [
        model(ids[rows], labels=labels[rows], num_items_in_batch=count).loss
        for rows in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize(
    "make", [PolewiseForCausalLM, PolewiseForSequenceClassification, PolewiseForForecasting]
)
def test_a_configuration_may_ask_for_tuples(make):
    numbers = {"num_input_features": 2, "prediction_length": 1}
    options = numbers if make is PolewiseForForecasting else {"vocab_size": 30}
    config = PolewiseConfig(hidden_size=8, num_hidden_layers=1, mixer_options=FOCUS, **options)
    model = make(config).eval()
    given = {"input_ids": tokens(1, 5)}
    if options == numbers:
        given = {"input_values": torch.randn(1, 5, 2)}
    expected = model(**given).logits
    config.return_dict = False
    got = model(**given)
    assert isinstance(got, tuple)
    assert torch.equal(got[0], expected)


def test_labels_are_smoothed_where_they_stand():
    """A Trainer that smooths labels shifts them by itself, for models that it knows to need it."""
    known = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    assert known["polewise"] == PolewiseForCausalLM.__name__


def test_a_prompt_that_ends_in_the_padding_token_is_refused():
    model, ids = language_model(), tokens(2, 6)
    ids[ids == 29], ids[1, -1] = 3, 29
    with pytest.raises(ValueError, match="no row may end in the padding token"):
        model.generate(ids, pad_token_id=29, max_new_tokens=1)


def test_a_model_that_is_saved_again_promises_no_code_of_the_folder_it_came_from(tmp_path):
    config = PolewiseConfig(hidden_size=8, mixer_options=FOCUS, auto_map={"AutoModel": "a.B"})
    config.save_pretrained(tmp_path)
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())


def test_a_configuration_can_be_read_back_with_the_notes_of_others(tmp_path):
    config = PolewiseConfig(hidden_size=8, mixer_options=FOCUS)
    assert PolewiseConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    config.note = "left by a tool"
    config.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="PolewiseConfig has no 'note'"):
        assert PolewiseConfig.from_pretrained(tmp_path).note == "left by a tool"


def test_a_class_is_read_from_the_mean_of_all_steps_or_from_the_last():
    torch.manual_seed(0)
    options = {"num_input_features": 2, "hidden_size": 8, "num_hidden_layers": 1}
    x, mask = torch.randn(2, 9, 2), torch.ones(2, 9, dtype=torch.long)
    mask[0, -1], mask[1] = 0, 0  # a row of eight steps, and one of none
    model = PolewiseForSequenceClassification(PolewiseConfig(**options, mixer_options=FOCUS))
    hidden = model.model(input_values=x[:1, :8]).last_hidden_state
    for pooling, pooled in (("mean", hidden.mean(1)), ("last", hidden[:, -1])):
        model.config.pooling = pooling
        logits = model(input_values=x, attention_mask=mask).logits
        torch.testing.assert_close(logits[:1], model.score(pooled))
        torch.testing.assert_close(logits[1], model.score.bias)
    with pytest.raises(ValueError, match=r"pooling.*lats"):
        PolewiseConfig(**options, pooling="lats")


def test_a_forecast_is_made_at_the_last_real_step(tmp_path):
    torch.manual_seed(0)
    config = PolewiseConfig(
        num_input_features=2, prediction_length=3, hidden_size=8, num_hidden_layers=1,
        mixer_options=FOCUS,
    )  # fmt: skip
    model = PolewiseForForecasting(config).eval()
    x, mask = torch.randn(2, 20, 2), torch.ones(2, 20, dtype=torch.long)
    mask[1, 12:] = 0
    output = model(input_values=x, attention_mask=mask, labels=torch.ones(2, 3, 2))
    assert output.logits.shape == (2, 3, 2)
    torch.testing.assert_close(output.loss, (output.logits - 1).square().mean())
    with pytest.raises(ValueError, match=r"labels must have shape \(batch, 3, 2\) like the for"):
        model(input_values=x, attention_mask=mask, labels=torch.ones(2, 3))
    alone = model(input_values=x[1:, :12]).logits
    torch.testing.assert_close(output.logits[1:], alone, rtol=1e-4, atol=1e-5)
    hidden = model.model(input_values=x[1:, :12]).last_hidden_state[:, -1]
    torch.testing.assert_close(alone, model.forecast(hidden).view(1, 3, 2))

    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForTimeSeriesPrediction.from_pretrained(tmp_path)
    torch.testing.assert_close(again(input_values=x[1:, :12]).logits, alone)


@pytest.mark.parametrize("name", ["num_input_features", "prediction_length"])
def test_a_forecasting_model_needs_to_know_what_and_how_far(name):
    options = {"num_input_features": 2, "prediction_length": 3, "hidden_size": 8, name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1 for a forecasting model"):
        PolewiseForForecasting(PolewiseConfig(**options))


def test_a_language_model_must_be_causal():
    with pytest.raises(ValueError, match="must have causal=True"):
        PolewiseForCausalLM(PolewiseConfig(hidden_size=8, mixer_options={"causal": False}))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_whole_model_is_one_graph_that_learns_the_same(backend):
    """In float32, where the compiled loops are at work."""
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("torch.compile's own backend needs g++ on a CPU")
    options = {"filters": 1, "memory_every": 2, "hypernetwork": "none", "chunk_length": 0}
    model, ids, found = language_model("focus", **options), tokens(2, 24), []
    for each in (model, torch.compile(model, fullgraph=True, backend=backend)):
        model.zero_grad()
        loss = each(ids, labels=ids).loss
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted)


def test_a_model_is_a_function_for_torch_func():
    """Gradients of single rows, and second derivatives, as the guide says."""
    model = language_model("focus", filters=1, memory_every=2).double()
    weights, ids = dict(model.named_parameters()), tokens(3, 12)

    def loss(weights, row):
        return functional_call(model, weights, (row[None],), {"labels": row[None]}).loss

    by_row = vmap(grad(loss), in_dims=(None, 0))(weights, ids)
    for number, row in enumerate(ids):
        model.zero_grad()
        model(row[None], labels=row[None]).loss.backward()
        for name, weight in weights.items():
            torch.testing.assert_close(by_row[name][number], weight.grad, rtol=1e-8, atol=1e-10)
    direction = {name: torch.randn_like(weight) for name, weight in weights.items()}
    _, curvature = jvp(lambda weights: grad(loss)(weights, ids[0]), (weights,), (direction,))
    assert all(part.isfinite().all() for part in curvature.values())

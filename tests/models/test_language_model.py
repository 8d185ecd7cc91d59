"""Facts about a language model that reads a text at once: causality, masks, loss, gradients."""

from __future__ import annotations

import shutil

import pytest
import torch
from tests.models.small_models import language_model, tokens
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional

from polewise import MIXERS, PolewiseForCausalLM
from polewise.models.modeling import PolewisePreTrainedModel

transformers = pytest.importorskip("transformers")

CAUSAL_FORMS = [
    {},
    {"sliding": True},
    {"filters": 2},
    {"realisation": "direct", "reset": True},
    {"hypernetwork": "none"},
    {"hypernetwork": "long_conv", "taps": 12},
    {"memory": False},
    {"memory_turning": False, "shared_keys": False, "heads": 2},
    {"filters": 0, "chunk_length": 0},
    {"memory_every": 2},
    {"heads": 2, "filters": 0, "chunk_length": 0},
]

PUBLISHED_FORMS = [
    {"hypernetwork": "shared_recurrent"},
    {"hypernetwork": "shared_long_conv", "taps": 12},
]


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


def test_labels_give_the_loss_of_predicting_the_next_token():
    model, ids = language_model(), tokens(2, 20)
    output = model(ids, labels=ids)
    wanted = functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(output.loss, wanted)


def test_labels_may_be_shifted_by_who_gives_them(model):
    ids = tokens(2, 6)
    shifted = torch.cat([ids[:, 1:], torch.full((2, 1), -100)], 1)
    loss = model(ids, labels=ids, shift_labels=shifted).loss
    torch.testing.assert_close(loss, model(ids, labels=ids).loss)
    with pytest.raises(ValueError, match=r"labels must have shape \(2, 6\), .*; got \(2, 5\)"):
        model(ids, labels=ids[:, 1:])
    with pytest.raises(TypeError, match="input_ids must be int32 or int64; got float32"):
        model(ids.float())
    with pytest.raises(TypeError, match="input_ids must be a tensor; got list"):
        model(ids.tolist())


def test_labels_are_smoothed_where_they_stand():
    """A Trainer that smooths labels shifts them by itself, for models that it knows to need it."""
    known = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    assert known["polewise"] == PolewiseForCausalLM.__name__


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


def test_what_stands_under_a_mask_is_not_looked_at(model):
    ids, mask = tokens(1, 12), torch.ones(1, 12, dtype=torch.long)
    mask[0, [0, 5]] = 0
    wrong = ids.clone()
    wrong[0, [0, 5]] = torch.tensor([-100, 10**6])
    kept = mask[0].bool()
    logits = model(wrong, attention_mask=mask).logits[:, kept]
    torch.testing.assert_close(logits, model(ids[:, kept]).logits)


def test_what_a_mask_hides_and_what_follows_it_is_no_target():
    model, ids = language_model(), tokens(2, 12)
    mask = torch.ones_like(ids)
    mask[0, :4], mask[1, 6] = 0, 0
    labels = ids.clone()
    labels[0, :5], labels[1, 6:8] = -100, -100
    expected = model(ids, attention_mask=mask, labels=labels).loss
    ids[0, :4] = 10**6  # not looked at, as a target either
    torch.testing.assert_close(model(ids, attention_mask=mask, labels=ids).loss, expected)


def test_gradients_of_unequal_parts_add_up_to_those_of_the_whole():
    model, ids, count = language_model(), tokens(4, 12), torch.tensor(44)
    mask = torch.ones_like(ids)
    mask[:2, :9] = 0

    def gradient(*parts):
        model.zero_grad()
        for part in parts:
            given = {"attention_mask": mask[part], "labels": ids[part]}
            model(ids[part], **given, num_items_in_batch=count).loss.backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    whole, in_parts = gradient(slice(4)), gradient(slice(2), slice(2, 4))
    torch.testing.assert_close(in_parts, whole)


def test_targets_of_chosen_logits_are_those_of_the_mask_and_the_documents():
    model, ids = language_model(), tokens(1, 7)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
    seq_idx = torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
    keep = torch.arange(1, 6)
    wanted = ids.clone()
    wanted[:, :4] = -100
    expected = model(ids, attention_mask=mask, labels=wanted[:, 1:6], logits_to_keep=keep).loss
    chosen = model(ids, attention_mask=mask, labels=ids[:, 1:6], logits_to_keep=keep).loss
    torch.testing.assert_close(chosen, expected)
    wanted = ids[:, -5:].clone()
    wanted[:, 1] = -100
    expected = model(ids, seq_idx=seq_idx, labels=wanted, logits_to_keep=5).loss
    chosen = model(ids, seq_idx=seq_idx, labels=ids[:, -5:], logits_to_keep=5).loss
    torch.testing.assert_close(chosen, expected)


def test_logits_to_keep_takes_the_last_or_the_chosen():
    model, ids = language_model(), tokens(2, 20)
    logits = model(ids).logits
    torch.testing.assert_close(model(ids, logits_to_keep=3).logits, logits[:, -3:])
    chosen = torch.tensor([0, 7])
    torch.testing.assert_close(model(ids, logits_to_keep=chosen).logits, logits[:, chosen])
    by_row = torch.tensor([[0, 7], [3, 19]])
    kept = model(ids, logits_to_keep=by_row).logits
    torch.testing.assert_close(kept, logits[torch.arange(2)[:, None], by_row])


def test_a_batch_with_nothing_in_it_gives_nothing(model):
    none = torch.zeros(1, 0, dtype=torch.long)
    assert model(none.float()).logits.shape == (1, 0, 30)
    assert model(none).logits.shape == (1, 0, 30)
    assert model(none, seq_idx=none).logits.shape == (1, 0, 30)
    assert model(tokens(0, 5)).logits.shape == (0, 5, 30)


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
    with pytest.raises(ValueError, match=r"input_ids must have shape \(batch, length\)"):
        model(torch.tensor([1, 2]), attention_mask=torch.tensor([1, 1]))


def test_positions_that_rise_among_real_tokens_are_taken(model):
    positions, mask = torch.tensor([[1, 1, 0, 1, 2]]), torch.tensor([[0, 0, 1, 1, 1]])
    given = model(tokens(1, 5), attention_mask=mask, position_ids=positions).logits
    assert torch.equal(given, model(tokens(1, 5), attention_mask=mask).logits)


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
    model = language_model(mixer)
    own = [each for each in model.modules() if hasattr(each, "reset_parameters")]
    order = {id(module): number for number, module in enumerate(started)}
    assert {id(module) for module in own} <= set(order)
    for module in own:
        assert all(order[id(module)] >= order.get(id(each), 0) for each in module.modules())


def test_the_network_that_places_poles_starts_near_their_base():
    model = language_model(hidden=256)
    network = model.model.backbone.blocks[0].mixer.filters.to_poles
    assert (network.up.bias == 0).all()
    assert 0.08 < network.down.weight.std() < 0.12  # 0.1; torch's own start would have 0.04


def test_a_hypernetwork_of_all_layers_wants_the_form_of_checkpointing_that_goes_back_once():
    model = language_model("published_focus", hypernetwork="shared_recurrent")
    with pytest.raises(ValueError, match="use_reentrant must be False"):
        model.activation_checkpointing_enable({"use_reentrant": True})
    language_model().activation_checkpointing_enable({"use_reentrant": True})


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


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_whole_model_is_one_graph_that_learns_the_same(backend):
    """In float32, where the compiled loops are at work."""
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("torch.compile's own backend needs g++ on a CPU")
    options = {"memory_every": 2, "hypernetwork": "none", "chunk_length": 0, "heads": 2}
    model, ids, found = language_model(**options).train(), tokens(2, 24), []
    for each in (model, torch.compile(model, fullgraph=True, backend=backend)):
        model.zero_grad()
        loss = each(ids, labels=ids).loss
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted)


def test_a_model_is_a_function_for_torch_func():
    """Gradients of single rows, and second derivatives, as the guide says."""
    # Without maxima, at whose kinks differences are no derivatives.
    model = language_model(memory_every=2, hypernetwork="none").double()
    weights, ids = dict(model.named_parameters()), tokens(3, 12)

    def loss(weights, row):
        return functional_call(model, weights, (row[None],), {"labels": row[None]}).loss

    by_row = vmap(grad(loss), in_dims=(None, 0))(weights, ids)
    for number, row in enumerate(ids):
        model.zero_grad()
        model(row[None], labels=row[None]).loss.backward()
        for name, weight in weights.items():
            torch.testing.assert_close(by_row[name][number], weight.grad, rtol=1e-8, atol=1e-10)

    def exact(weights):
        """The first row's loss; the library's is of float32 logits."""
        logits = functional_call(model, weights, (ids[:1],)).logits
        return functional.cross_entropy(logits[0, :-1], ids[0, 1:])

    direction = {name: torch.randn_like(weight) for name, weight in weights.items()}

    def gradient(by):
        return grad(exact)({name: weights[name] + by * direction[name] for name in weights})

    _, curvature = jvp(grad(exact), (weights,), (direction,))
    before, after = gradient(-1e-5), gradient(1e-5)
    for name, part in curvature.items():
        difference = (after[name] - before[name]) / 2e-5
        torch.testing.assert_close(part, difference, rtol=1e-4, atol=1e-6)


def test_an_argument_of_another_model_is_named_as_such():
    ids = tokens(1, 4)
    with pytest.raises(TypeError, match="labels is an argument of other models of Polewise"):
        language_model().model(ids, labels=ids)

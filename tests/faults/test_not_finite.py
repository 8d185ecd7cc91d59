"""NaN and infinity: the step is skipped; when that does not help, the run says why or goes back."""

import os
import signal
from dataclasses import dataclass, replace

import pytest
import torch
from tests.faults.runs import (
    TASK,
    RecallWith,
    checkpoints_in,
    have_equal_parameters,
    quiet,
    small_run,
    task_of,
    untimed_metrics,
)

from polewise.tasks import TASKS, ImagesTask
from polewise.training import NonFiniteError, build_model, resume, train
from polewise.training.diagnosis import diagnose
from polewise.training.progress import UsualLoss
from polewise.training.session import Session

LONG = TASK | {"length": 14}


class Poisoned(RecallWith):
    """The losses of some batches are NaN."""

    first = 2
    last = 2
    poison = float("nan")

    def change(self, step, batch):
        bad = self.first <= step <= self.last
        return batch | {"poison": torch.tensor(self.poison if bad else 1.0)}

    def loss(self, logits, batch):
        return super().loss(logits, batch) * batch["poison"]


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_bad_step_is_skipped_counted_and_changes_no_parameter(poison, tmp_path, monkeypatch):
    take_step, moved = Session.take_step, []

    def watched(self, batches, rate):
        before = [parameter.detach().clone() for parameter in self.model.parameters()]
        take_step(self, batches, rate)
        pairs = zip(before, self.model.parameters(), strict=True)
        moved.append(any(not torch.equal(old, new) for old, new in pairs))

    monkeypatch.setattr(Session, "take_step", watched)
    bad = train(
        small_run(task_of(Poisoned, first=2, last=3, poison=poison)),
        tmp_path / "bad",
        console=quiet(),
    )
    assert (bad.status, bad.step) == ("finished", 6)
    lines = untimed_metrics(tmp_path / "bad")
    assert [r for r in lines if r["kind"] == "skip"] == [
        {"kind": "skip", "step": 3, "in_a_row": 1, "in_all": 1},
        {"kind": "skip", "step": 4, "in_a_row": 2, "in_all": 2},
    ]
    assert [r["step"] for r in lines if r["kind"] == "train"] == [1, 2, 5, 6]
    # None in the middle of it; the one that was due there comes after it.
    assert checkpoints_in(tmp_path / "bad") == ["step-5", "step-6"]
    assert moved[1:] == [True, False, False, True, True]  # the first rate of the warm-up is 0


def test_a_finite_loss_with_a_bad_gradient_is_skipped_too(tmp_path):
    class Steep(RecallWith):
        """At the third step the loss has the square root of 0 in it: the gradient is not finite."""

        def change(self, step, batch):
            return batch | {"steep": torch.tensor(step == 2)}

        def loss(self, logits, batch):
            loss = super().loss(logits, batch)
            return loss + (logits - logits.detach()).sum().sqrt() if batch["steep"] else loss

    train(small_run(Steep(**TASK)), tmp_path / "run", console=quiet())
    lines = untimed_metrics(tmp_path / "run")
    assert [r["step"] for r in lines if r["kind"] == "skip"] == [3]
    assert [r["step"] for r in lines if r["kind"] == "train"] == [1, 2, 4, 5, 6]


def test_too_many_bad_steps_in_a_row_end_the_run_with_a_diagnosis(tmp_path):
    run = small_run(task_of(Poisoned, LONG, first=2, last=99), mixer="focus", max_steps=9)
    with pytest.raises(NonFiniteError) as caught:
        train(run, tmp_path / "run", console=quiet())
    text = str(caught.value)
    for part in (
        "became NaN or infinite at step 3",
        "the loss is NaN, though the logits are finite",
        "learning rate was",
        "the largest pole radius is 0.9",
        "mixer, filter 0 of channel",
        "the last good checkpoint is",
        "step-2",
    ):
        assert part in text
    assert checkpoints_in(tmp_path / "run") == ["step-2"]


def test_a_model_without_poles_has_a_diagnosis_without_them(tmp_path):
    run = small_run(task_of(Poisoned, LONG, first=2, last=99), mixer="focus", max_steps=9)
    run = replace(run, model=replace(run.model, mixer_options={"memory": False}))
    with pytest.raises(NonFiniteError, match="the loss is NaN") as caught:
        train(run, tmp_path / "run", console=quiet())
    assert "pole radius" not in str(caught.value)


def test_a_roll_back_goes_on_with_new_data_and_half_the_rate(tmp_path):
    task = task_of(Poisoned, first=4, last=6)
    run = small_run(task, on_skip_limit="roll_back", max_steps=10, warmup=0, final_learning_rate=1)
    console = quiet()
    outcome = train(run, tmp_path / "run", console=console)
    assert (outcome.status, outcome.step) == ("finished", 10)
    assert "back to" in console.file.getvalue()
    lines = untimed_metrics(tmp_path / "run")
    (back,) = [r for r in lines if r["kind"] == "roll_back"]
    assert back == {"kind": "roll_back", "step": 4, "from_step": 7, "rollbacks": 1}
    rates = {r["step"]: r["learning_rate"] for r in lines if r["kind"] == "train"}
    assert rates[4] == 1e-3
    assert rates[5] == pytest.approx(5e-4)
    assert sorted(rates) == list(range(1, 11))


def test_stopped_in_the_middle_of_trouble_a_run_goes_back_as_far(tmp_path, monkeypatch):
    class StoppedThere(Poisoned):
        def change(self, step, batch):
            if step == 5 and not (tmp_path / "stopped").exists():
                (tmp_path / "stopped").touch()
                os.kill(os.getpid(), signal.SIGINT)
            return super().change(step, batch)

    options = {"on_skip_limit": "roll_back", "max_steps": 10, "keep_checkpoints": 1}
    train(small_run(task_of(Poisoned, first=4, last=6), **options), tmp_path / "a", console=quiet())
    task = task_of(StoppedThere, first=4, last=6)
    assert train(small_run(task, **options), tmp_path / "b", console=quiet()).step == 6
    assert checkpoints_in(tmp_path / "b") == ["step-4", "step-6"]
    monkeypatch.setitem(TASKS, "recall", type(task))
    resume(tmp_path / "b", console=quiet())
    assert have_equal_parameters(tmp_path / "b", tmp_path / "a")
    assert untimed_metrics(tmp_path / "b") == untimed_metrics(tmp_path / "a")


def test_trouble_at_every_checkpoint_that_is_due_leaves_the_steps_after_it(tmp_path):
    class Uneven(Poisoned):
        def change(self, step, batch):
            bad = step in (1, 3, 5)
            return batch | {"poison": torch.tensor(float("nan") if bad else 1.0)}

    train(small_run(Uneven(**TASK), max_steps=8), tmp_path / "run", console=quiet())
    assert checkpoints_in(tmp_path / "run") == ["step-7", "step-8"]


def test_after_three_roll_backs_the_run_ends(tmp_path):
    run = small_run(task_of(Poisoned, first=4, last=99), on_skip_limit="roll_back", max_steps=10)
    console = quiet()
    with pytest.raises(NonFiniteError, match="at step 5"):
        train(run, tmp_path / "run", console=console)
    assert console.file.getvalue().count("; back to") == 3


def test_nan_in_the_data_is_named(tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class Broken(ImagesTask):
        def train_batches(self, seed, first_step=0):
            for batch in super().train_batches(seed, first_step):
                batch["inputs"][0, 5] = float("nan")
                yield batch

    task = Broken(source="digits", num_train=8, num_eval=4, batch_size=4)
    with pytest.raises(NonFiniteError, match="at step 1; the inputs of the batch are not finite"):
        train(small_run(task), tmp_path / "run", console=quiet())


class Sabotage(RecallWith):
    """Does something to the model at the third batch."""

    def change(self, step, batch):
        if step == 2:
            self.harm()
        return batch


@pytest.fixture
def built(monkeypatch):
    """The model and the optimiser of the run, as soon as they are there."""
    from polewise.training import session

    parts = {}

    def remember(name):
        make = getattr(session, name)

        def made(*arguments):
            parts[name] = make(*arguments)
            return parts[name]

        monkeypatch.setattr(session, name, made)

    remember("build_model")
    remember("build_optimizer")
    return parts


def test_nan_in_a_weight_is_named_and_never_saved(tmp_path, built):
    class Harm(Sabotage):
        def harm(self):
            weight = built["build_model"].get_parameter("model.backbone.norm.weight")
            weight.data[3] = float("nan")

    with pytest.raises(NonFiniteError, match=r"the parameter model\.backbone\.norm\.weight is NaN"):
        train(small_run(Harm(**TASK)), tmp_path / "run", console=quiet())
    assert checkpoints_in(tmp_path / "run") == ["step-2"]


@pytest.mark.parametrize(
    ("average", "message"),
    [
        ("exp_avg", r"the parameter .* is (NaN|infinite)"),
        (
            "exp_avg_sq",
            r"the average exp_avg_sq of .* is infinite",
        ),  # its parameter just stands still
    ],
)
def test_infinity_in_the_optimiser_is_stopped_before_it_is_saved(tmp_path, built, average, message):
    class Harm(Sabotage):
        def harm(self):
            state = next(iter(built["build_optimizer"].state.values()))
            state[average].fill_(float("inf"))

    run = small_run(Harm(**TASK), log_every=100)
    with pytest.raises(NonFiniteError, match=message):
        train(run, tmp_path / "run", console=quiet())
    assert checkpoints_in(tmp_path / "run") == ["step-2"]


def test_nan_in_a_gradient_is_named(tmp_path, built):
    class Harm(Sabotage):
        def harm(self):
            weight = built["build_model"].get_parameter("model.backbone.norm.weight")
            weight.register_hook(lambda gradient: gradient * float("nan"))

    with pytest.raises(NonFiniteError, match=r"the gradient of model\.backbone\.norm\.weight is N"):
        train(small_run(Harm(**TASK)), tmp_path / "run", console=quiet())


def test_the_first_bad_activation_is_named_with_its_layer():
    run = small_run(mixer="focus")
    run = replace(run, model=replace(run.model, num_layers=2))
    model = build_model(run.task.spec, run.model)
    block = model.get_submodule("model.backbone.blocks.1")
    block.mixer_norm.register_forward_hook(lambda *_: torch.full_like(_[2], float("inf")))
    text = diagnose(model, run.task, [next(run.task.train_batches(0))], 1e-3)
    assert "output of model.backbone.blocks.1.mixer_norm " in text
    assert "pole" in text


def test_a_diagnosis_changes_nothing():
    run = small_run(mixer="focus")
    model = build_model(run.task.spec, run.model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    diagnose(model, run.task, [next(run.task.train_batches(0))], 1e-3)
    assert all(value.grad is None for value in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_spike_of_the_loss_is_written_down(tmp_path):
    task = task_of(Poisoned, first=70, last=70, poison=40.0)
    run = small_run(task, max_steps=75, log_every=50, evaluate_every=100, checkpoint_every=100)
    train(run, tmp_path / "run", console=quiet())
    (spike,) = [r for r in untimed_metrics(tmp_path / "run") if r["kind"] == "spike"]
    assert spike["step"] == 71
    assert spike["loss"] > 10 * spike["expected"]


def test_steady_losses_and_the_first_ones_are_no_spikes():
    usual = UsualLoss()
    assert [usual.add(100.0 / (1 + step)) for step in range(500)] == [None] * 500
    assert usual.add(50.0) is not None
    fresh = UsualLoss()
    assert [fresh.add(loss) for loss in (1.0, 50.0, 1.0)] == [None] * 3

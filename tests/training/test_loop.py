"""Facts about the training loop."""

import io
import itertools
import json
import os
import signal
from dataclasses import dataclass, replace

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from polewise.tasks import ImagesTask, RecallTask, TextTask
from polewise.training import (
    NonFiniteError,
    Outcome,
    Run,
    RunFolder,
    TrainingOptions,
    evaluate,
    resume,
    train,
)
from polewise.training.display import Display, format_seconds
from polewise.training.progress import Progress, remaining_seconds
from polewise.training.stopping import stop_requests


def quiet():
    return Console(file=io.StringIO())


def parameters_of(folder, name="model-last"):
    return load_file(folder / name / "model.safetensors")


@dataclass(frozen=True, kw_only=True)
class InterruptedTask(RecallTask):
    """Someone presses Ctrl-C during the fourth step."""

    def train_batches(self, seed, first_step=0):
        for step, batch in enumerate(super().train_batches(seed, first_step), first_step):
            if step == 3:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch


@dataclass(frozen=True, kw_only=True)
class PoisonedTask(RecallTask):
    """From the fourth step on the loss is NaN."""

    def loss(self, logits, batch):
        return super().loss(logits, batch) * batch["poison"]

    def train_batches(self, seed, first_step=0):
        for step, batch in enumerate(super().train_batches(seed, first_step), first_step):
            yield batch | {"poison": torch.tensor(float("nan") if step >= 3 else 1.0)}


def test_who_asks_inside_asks_around_it_too():
    with stop_requests() as around, stop_requests() as inside:
        os.kill(os.getpid(), signal.SIGTERM)
        assert (inside.signal, around.signal) == (signal.SIGTERM, signal.SIGTERM)
        with stop_requests() as later:
            assert later.signal == signal.SIGTERM
    with stop_requests() as fresh:
        assert fresh.signal is None


def test_a_run_leaves_a_complete_folder(tmp_path, small_run):
    outcome = train(small_run(), tmp_path / "run", console=quiet())
    folder = outcome.folder
    assert (outcome.status, outcome.step) == ("finished", 6)
    assert folder.read_run() == small_run()
    environment = folder.read_config()["environment"]
    assert environment["versions"]["torch"] == torch.__version__
    assert environment["num_cores"] == os.cpu_count()
    assert [path.name for path in sorted(folder.checkpoints_path.iterdir())] == ["step-4", "step-6"]
    records = folder.read_metrics()
    assert [r["step"] for r in records if r["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in records if r["kind"] == "eval"] == [3, 6]
    assert list(folder.path.glob("events.out.*"))
    assert outcome.metrics == {k: records[-1][k] for k in ("accuracy", "loss")}


def test_the_saved_model_gives_the_metrics_of_the_log(tmp_path, small_run):
    outcome = train(small_run(evaluate_every=6), tmp_path / "run", console=quiet())
    again = evaluate(outcome.folder.load_model(), outcome.folder.read_run().task)
    assert again == pytest.approx(outcome.metrics, rel=1e-6)


def test_two_runs_of_one_seed_are_equal_and_another_seed_differs(tmp_path, small_run):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(small_run(seed=seed), tmp_path / name, console=quiet())
    a, b, c = (parameters_of(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_ctrl_c_saves_and_resuming_ends_as_if_nothing_had_happened(tmp_path, small_run):
    options = {"length": 6, "vocab_size": 6, "num_eval": 8, "batch_size": 4}
    whole = train(small_run(), tmp_path / "whole", console=quiet())
    cut = train(small_run(InterruptedTask(**options)), tmp_path / "cut", console=quiet())
    assert (cut.status, cut.step) == ("interrupted", 4)
    assert cut.folder.last_checkpoint().name == "step-4"
    assert cut.folder.last_model_path.is_dir()

    resumed = resume(tmp_path / "cut", console=quiet())
    assert (resumed.status, resumed.step) == ("finished", 6)
    a, b = parameters_of(tmp_path / "whole"), parameters_of(tmp_path / "cut")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert resumed.metrics == whole.metrics
    without_time = [
        [
            {k: v for k, v in record.items() if k not in ("seconds", "positions_per_second")}
            for record in folder.read_metrics()
        ]
        for folder in (whole.folder, resumed.folder)
    ]
    assert without_time[0] == without_time[1]


def test_what_was_logged_after_the_last_checkpoint_is_forgotten_when_a_killed_run_resumes(
    tmp_path, small_run
):
    @dataclass(frozen=True, kw_only=True)
    class Killed(RecallTask):
        def train_batches(self, seed, first_step=0):
            yield from itertools.islice(super().train_batches(seed, first_step), 5)
            raise SystemExit

    options = {"length": 6, "vocab_size": 6, "num_eval": 8, "batch_size": 4}
    with pytest.raises(SystemExit):
        train(small_run(Killed(**options)), tmp_path / "run", console=quiet())
    folder = RunFolder(tmp_path / "run")
    assert folder.read_metrics()[-1]["step"] == 5
    assert folder.last_checkpoint().name == "step-4"
    resume(tmp_path / "run", console=quiet())
    steps = [record["step"] for record in folder.read_metrics() if record["kind"] == "train"]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_the_signal_handler_of_before_is_back_after_training(tmp_path, small_run):
    before = signal.getsignal(signal.SIGINT)
    train(small_run(max_steps=1), tmp_path / "run", console=quiet())
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("log_every", [1, 100])
def test_nan_stops_the_run_and_never_reaches_a_file(tmp_path, log_every, small_run):
    run = small_run(PoisonedTask(length=6, vocab_size=6, num_eval=8), log_every=log_every)
    with pytest.raises(NonFiniteError, match=r"at step 4; .*learning rate .* is .*step-2"):
        train(run, tmp_path / "run", console=quiet())
    folder = RunFolder(tmp_path / "run")
    assert [path.name for path in folder.checkpoints_path.iterdir()] == ["step-2"]
    for file in folder.path.rglob("*.safetensors"):
        for value in load_file(file).values():
            assert torch.isfinite(value).all()
    for line in folder.metrics_path.read_text().splitlines():
        assert "NaN" not in line


def test_training_stops_when_the_target_is_reached(tmp_path, small_run):
    outcome = train(small_run(stop_at=0.0, max_steps=60), tmp_path / "run", console=quiet())
    assert (outcome.status, outcome.step) == ("reached", 3)
    assert outcome.folder.last_checkpoint().name == "step-3"
    with pytest.raises(ValueError, match=r"has reached its stop_at, 0, at step 3"):
        resume(tmp_path / "run", max_steps=80, console=quiet())
    assert outcome.folder.last_checkpoint().name == "step-3"


def test_a_budget_in_seconds_ends_the_run_and_moves_the_learning_rate(tmp_path, small_run):
    run = small_run(max_steps=None, max_seconds=1.0, evaluate_every=1000)
    outcome = train(run, tmp_path / "run", console=quiet())
    rates = [r["learning_rate"] for r in outcome.folder.read_metrics() if r["kind"] == "train"]
    assert outcome.folder.read_metrics()[-1]["seconds"] >= 1.0
    assert rates[-1] < max(rates)


def test_the_best_model_is_kept_beside_the_last(tmp_path, small_run):
    @dataclass(frozen=True, kw_only=True)
    class Worsening(RecallTask):
        """A higher headline at every evaluation, and lower is better."""

        headline = "badness"
        higher_is_better = False
        count = itertools.count()

        def metrics(self, logits, batch):
            return {"badness": (float(next(self.count)), 1)}

    task = Worsening(length=6, vocab_size=6, num_eval=4, batch_size=4)
    train(small_run(task), tmp_path / "run", console=quiet())
    best, last = parameters_of(tmp_path / "run", "model"), parameters_of(tmp_path / "run")
    assert any(not torch.equal(best[name], last[name]) for name in best)


def test_bfloat16_trains_and_the_parameters_stay_float32(tmp_path, small_run):
    run = small_run(max_steps=2, precision="bfloat16")
    outcome = train(run, tmp_path / "run", console=quiet())
    assert outcome.step == 2
    assert all(v.dtype == torch.float32 for v in parameters_of(tmp_path / "run").values())
    train(small_run(max_steps=2), tmp_path / "exact", console=quiet())
    exact, rounded = parameters_of(tmp_path / "exact"), parameters_of(tmp_path / "run")
    assert any(not torch.equal(exact[name], rounded[name]) for name in exact)


def test_gradients_are_shortened_to_the_clip_norm(tmp_path, small_run, monkeypatch):
    norms = []
    step = torch.optim.AdamW.step

    def noting(self, *arguments):
        parts = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(torch.linalg.vector_norm(torch.cat([part.flatten() for part in parts])))
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", noting)
    train(small_run(max_steps=2, clip_norm=1e-3), tmp_path / "run", console=quiet())
    assert [norm.item() for norm in norms] == pytest.approx([1e-3] * 2, rel=1e-3)


@pytest.mark.parametrize(
    "change",
    [
        lambda run: replace(run, task=RecallTask(length=2, vocab_size=4, num_eval=9)),
        lambda run: replace(run, task=ImagesTask(source="digits", num_train=9999)),
    ],
)
def test_nothing_is_created_when_the_data_will_not_do(tmp_path, change, small_run):
    with pytest.raises(ValueError, match="must be at most"):
        train(change(small_run()), tmp_path / "run", console=quiet())
    assert not (tmp_path / "run").exists()


def test_a_folder_in_use_is_left_alone(tmp_path, small_run):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="out must be a new or empty folder"):
        train(small_run(), tmp_path / "run", console=quiet())
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_a_folder_in_which_nothing_began_is_taken_and_cleared(tmp_path, small_run):
    left = tmp_path / "run" / f".{'0' * 32}.partial"  # of a process that was killed at once
    left.mkdir(parents=True)
    assert train(small_run(), tmp_path / "run", console=quiet()).step == 6
    assert not left.exists()


def test_a_stop_that_another_process_was_asked_for_is_no_success(tmp_path):
    about = {"folder": RunFolder(tmp_path), "step": 1, "metrics": {}, "is_main_process": True}
    assert Outcome(status="interrupted", **about).exit_code == 143
    assert Outcome(status="interrupted", signal=2, **about).exit_code == 130
    assert Outcome(status="finished", **about).exit_code == 0


def test_a_spent_run_resumes_only_with_a_larger_budget(tmp_path, small_run):
    train(small_run(), tmp_path / "run", console=quiet())
    with pytest.raises(ValueError, match=r"must be more than .* has spent \(6 steps"):
        resume(tmp_path / "run", console=quiet())
    outcome = resume(tmp_path / "run", max_steps=8, console=quiet())
    assert outcome.step == 8
    assert outcome.folder.read_run().training.max_steps == 8


def test_evaluation_weighs_batches_by_what_they_hold(tmp_path, small_run):
    run = small_run()
    model = train(run, tmp_path / "run", console=quiet()).folder.load_model()
    values = [evaluate(model, replace(run.task, num_eval=7, batch_size=size)) for size in (1, 3, 7)]
    assert values[1] == pytest.approx(values[0], rel=1e-5)
    assert values[2] == pytest.approx(values[0], rel=1e-5)


@pytest.mark.parametrize("terminal", [None, "dumb"])
def test_progress_is_plain_lines_without_a_terminal_that_moves(terminal):
    console = quiet()
    if terminal:
        console = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": terminal})
    with Display("recall", console) as display:
        display.update(0.25, "loss 2.5", 65)
        display.note("step 3: [accuracy] 1")
    assert console.file.getvalue().splitlines() == [
        "recall  25%  loss 2.5, 1:05 left",
        "recall  step 3: [accuracy] 1",
    ]


def test_on_a_narrow_terminal_title_share_and_time_are_whole():
    console = Console(file=io.StringIO(), width=80, force_terminal=True, _environ={"TERM": "xterm"})
    status = "loss 3.346, gradient norm 0.8048, positions per second 5690"
    with Display("mnist/focus/rate-0.002", console) as display:
        display.update(0.25, status, 65)
        display._bar.refresh()
    frame = console.file.getvalue()
    assert "mnist/focus/rate-0.002" in frame
    assert "25%" in frame
    assert "1:05 left, loss" in frame


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (725, "12:05"), (3723, "1:02:03")]
)
def test_durations_read_like_a_clock(seconds, text):
    assert format_seconds(seconds) == text


def test_time_that_remains_is_told_once_a_step_was_timed():
    progress, options = Progress(), TrainingOptions(max_steps=10)
    progress.step = 1  # the first, which compiles, is not timed
    assert remaining_seconds(progress, options) is None
    progress.step, progress.seconds = 2, 3.0
    assert remaining_seconds(progress, options) == pytest.approx(12.0)


@pytest.mark.parametrize(
    "line",
    [
        '{"kind": "eval", "step": 1}',
        '{"kind": "train", "step": 1, "seconds": 1.0, "loss": "x"}',
        '{"kind": "train", "step": true, "seconds": 1.0}',
        "[1]",
        '{"kind": "tra',
    ],
)
def test_a_damaged_line_of_the_log_is_left_out(line, tmp_path, small_run):
    folder = RunFolder.create(tmp_path / "run", small_run())
    whole = {"kind": "train", "step": 1, "seconds": 1.5, "loss": 2}
    folder.metrics_path.write_text(f"{json.dumps(whole)}\n{line}\n")
    assert folder.read_metrics() == [whole]


def test_config_is_json_that_names_the_task(tmp_path, small_run):
    RunFolder.create(tmp_path / "run", small_run())
    assert json.loads((tmp_path / "run" / "config.json").read_text())["task"]["name"] == "recall"
    assert isinstance(RunFolder.open(tmp_path / "run").read_run(), Run)


def test_the_model_of_a_text_is_saved_with_the_tokenizer_of_bytes(tmp_path, small_run):
    from transformers import pipeline

    task = TextTask(length=8, batch_size=2, eval_bytes=16)
    train(small_run(task, max_steps=2), tmp_path / "run", console=quiet())
    for name in ("model", "model-last"):
        write = pipeline("text-generation", model=str(tmp_path / "run" / name))
        text = write("It was ", max_new_tokens=3)[0]["generated_text"]
        assert text.startswith("It was ")

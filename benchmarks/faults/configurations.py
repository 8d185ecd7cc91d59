"""Random configurations: an answer of one line and no folder left behind, or a run."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console

from polewise.mixers import MIXERS, mixer_option_types
from polewise.tasks import (
    ImagesTask,
    InductionTask,
    ListOpsTask,
    MqarTask,
    RecallTask,
    SelectiveCopyTask,
    TextTask,
)
from polewise.training import (
    ModelOptions,
    Run,
    RunFolder,
    TrainingError,
    TrainingOptions,
    run_from_json,
    run_to_json,
    train,
)
from polewise.training.checkpoint import verify_checkpoint

NASTY = [
    None, True, -1, 0, 1, 2, 3, 7, 2**31, 2**63, 10**400, -0.5, 0.5, 1.0, 1e-300, 1e300,
    float("nan"), float("inf"), "", "8", "focus", "attention", "mamba2", "test", "digits",
    "bfloat16", "continue", "roll_back", "8:2", "8,16",
    "/", ".", "nowhere.txt", "\0", "a" * 5000, [], [1], [0.9, 0.99], {}, {"chunk_length": 8},
    {"chunk_lenght": 8}, {"bin_length": 8, "windows": 3}, {"filters": 2**40}, {1: 2},
]  # fmt: skip

SMALL = (
    RecallTask(length=6, vocab_size=6, num_eval=4, batch_size=2),
    TextTask(length=8, batch_size=2, eval_bytes=16),
    ImagesTask(source="digits", num_train=8, num_eval=4, batch_size=2),
    MqarTask(train_on="8:2", test_on="8:2", vocab_size=16, num_eval=4, batch_size=2),
    SelectiveCopyTask(length=6, num_tokens=2, vocab_size=6, num_eval=4, batch_size=2),
    InductionTask(length=6, test_lengths="8", vocab_size=6, num_eval=4, batch_size=2),
    ListOpsTask(min_length=3, max_length=12, num_eval=4, batch_size=2),
)


def random_configuration(chance: random.Random) -> dict[str, Any]:
    """Return the JSON of a run with some parts changed at random, most of them for the worse."""
    task = chance.choice(SMALL)
    mixer = chance.choice(list(MIXERS))
    known = mixer_option_types(mixer)
    options = {name: 8 for name in ("chunk_length", "bin_length") if name in known}
    run = Run(
        task=task,
        model=ModelOptions(mixer=mixer, mixer_options=options, hidden_size=8, num_layers=1),
        training=TrainingOptions(max_steps=1),
    )
    values = json.loads(json.dumps(run_to_json(run)))
    for _ in range(chance.randrange(4)):
        inner = [part for part in values.values() if isinstance(part, dict)]
        deeper = [part for one in inner for part in one.values() if isinstance(part, dict)]
        part = chance.choice([values, *inner, *deeper])
        if not part:
            continue
        name = chance.choice(list(part))
        what = chance.random()
        if what < 0.7:
            part[name] = chance.choice(NASTY)
        elif what < 0.8:
            del part[name]
        elif what < 0.9:
            part[f"{name}s"] = part.pop(name)
        else:
            part[chance.choice(["", "lr", "seeds", "extra"])] = chance.choice(NASTY)
    return values


def try_configuration(values: Any, folder: Path) -> str:
    """Make a run of it and take one step; return what came of it.

    Raises:
        AssertionError: something is left after an answer, or something is missing after a run.
        Exception: whatever is not documented.
    """
    out = folder / "run"
    try:
        run = _first_step_of(run_from_json(values))
        if run is None:
            return "too large to train here"
        train(run, out, console=Console(quiet=True))
    except ValueError as error:
        require_one_answer(error)
        assert not out.exists(), "an answer, and a folder with it"
        return "refused"
    except TrainingError as error:
        require_one_answer(error)
        shutil.rmtree(out)
        return "trained, and ended with an answer"
    assert RunFolder.open(out).read_run() == run
    verify_checkpoint(out / "checkpoints" / "step-1")
    shutil.rmtree(out)
    return "trained"


def _first_step_of(run: Run) -> Run | None:
    """Return the run with one step, or None where that takes long."""
    task, model = run.task, run.model
    sizes = [task.batch_size, task.spec.length, model.hidden_size, 8 * model.num_layers]
    sizes += [getattr(task, "num_eval", 0) or 0, getattr(task, "eval_bytes", 0)]
    large = isinstance(task, TextTask) and not task.eval_bytes
    large |= isinstance(task, ImagesTask) and (task.source == "mnist" or not task.num_eval)
    large |= run.training.accumulate > 64 or max(sizes) > 256
    once = dataclasses.replace(run.training, max_steps=1, max_seconds=None)
    return None if large else dataclasses.replace(run, training=once)


def require_one_answer(error: Exception) -> None:
    assert str(error), "an answer without words"
    assert len(str(error)) < 10_000, f"an answer of {len(str(error))} characters"

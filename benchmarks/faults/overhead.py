"""What manifests and flushing to the disk cost, beside 15 minutes of training."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors.torch import save_file, save_model

from polewise.recipes import demo_text
from polewise.training import build_model, train
from polewise.training.checkpoint import load_checkpoint, named_optimizer_state, save_checkpoint
from polewise.training.optimizer import build_optimizer
from polewise.training.progress import Progress


def measure_overhead(folder: Path, repeats: int = 15, steps: int = 20) -> dict[str, float]:
    """Compare saving with manifest, flushing and renaming to writing the same files plainly.

    Alternates the two in one process; the model is the one of the 15-minute text runs.
    """
    run = demo_text(seconds=900)
    run = dataclasses.replace(
        run,
        task=dataclasses.replace(run.task, eval_bytes=4096),
        training=dataclasses.replace(run.training, max_seconds=None, max_steps=steps, log_every=1),
    )
    outcome = train(run, folder / "run", console=Console(quiet=True))
    timed = [r for r in outcome.folder.read_metrics() if "positions_per_second" in r]
    positions = run.task.batch_size * run.task.spec.length
    step_seconds = min(positions / r["positions_per_second"] for r in timed)  # most steps
    model = build_model(run.task.spec, run.model)
    optimizer = build_optimizer(model, run.training)
    progress = load_checkpoint(outcome.folder.last_checkpoint(), model, optimizer)
    safe, plain, models = [], [], []
    for number in range(repeats):
        progress.step = number
        begin = time.perf_counter()
        optimizer_state = dict(named_optimizer_state(optimizer))
        save_checkpoint(folder / "safe", model, optimizer_state, progress, keep=2)
        safe.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        _save_plainly(folder / "plain", model, optimizer, progress)
        plain.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        outcome.folder.save_model(model, best=True)
        models.append(time.perf_counter() - begin)
    budget, options = 900.0, demo_text().training
    num_steps = budget / step_seconds
    checkpoints = num_steps / options.checkpoint_every
    evaluations = num_steps / options.evaluate_every
    extra = statistics.median(safe) - statistics.median(plain)
    saving = checkpoints * statistics.median(safe) + evaluations * statistics.median(models)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "step_seconds": step_seconds,
        "checkpoint_seconds_safe": statistics.median(safe),
        "checkpoint_seconds_safe_most": max(safe),
        "checkpoint_seconds_plain": statistics.median(plain),
        "best_model_seconds": statistics.median(models),
        "checkpoints_in_15_minutes": checkpoints,
        "safety_share_of_15_minutes": (checkpoints + evaluations) * extra / budget,
        "all_saving_share_of_15_minutes": saving / budget,
        "share_with_a_checkpoint_every_100_steps": num_steps / 100 * extra / budget,
    }


def _save_plainly(folder: Path, model: Any, optimizer: Any, progress: Progress) -> None:
    folder.mkdir(exist_ok=True)
    save_model(model, str(folder / "model.safetensors"))
    state = optimizer.state_dict()["state"]
    tensors = {f"{i}.{k}": v for i, entries in state.items() for k, v in entries.items()}
    save_file(tensors, folder / "optimizer.safetensors")
    (folder / "progress.json").write_text(json.dumps(dataclasses.asdict(progress)))

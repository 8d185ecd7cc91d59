"""The commands that take a finished run: measure it, describe it, hand it on."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from polewise.cli.output import exit_code, pairs
from polewise.cli.parsing import RunPath
from polewise.tasks import ForecastTask, ImagesTask, TextTask
from polewise.training import RunFolder, evaluate
from polewise.training.building import model_without_numbers
from polewise.training.errors import explained_saving


def eval(  # noqa: A001
    run: RunPath, part: str = "valid"
) -> int:
    """Evaluate a trained run's best model on all of its held-out data.

    Prints one JSON object. For example:
      polewise eval runs/demo-20260101-120000/text
      polewise eval runs/demo-20260101-120000/text --part test

    Args:
        run: The run folder.
        part: The held-out part, valid or test.
    """
    folder = RunFolder.open(run)
    described = folder.read_run()
    task: Any = described.task
    if hasattr(task, "part"):
        task = replace(task, part=part)
    elif part != "valid":
        raise ValueError(
            f"part must be valid for {described.task_name}, which has one held-out set; got {part}."
        )
    if isinstance(task, TextTask):
        task = replace(task, eval_bytes=0)
    if isinstance(task, ImagesTask):
        task = replace(task, num_eval=None)
    if isinstance(task, ForecastTask):
        task = replace(task, eval_stride=1)
    described.task.prepare()
    folder.require_same_data(described)
    task.prepare()
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    model: Any = folder.load_model()
    metrics = evaluate(model.to(device), task)
    if isinstance(task, TextTask):
        metrics["xz_bits_per_byte"] = task.compressor_bits_per_byte()
    finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    print(json.dumps({"part": part, **finite}))
    return 0


def info(run: RunPath) -> int:
    """Say what a run is: options, size, state, how far it got.

    For example:
      polewise info runs/demo-20260101-120000/text

    Args:
        run: The run folder.
    """
    folder = RunFolder.open(run)
    config = folder.read_config()
    described = folder.read_run()
    spec = folder.spec_of(described)
    model: Any = model_without_numbers(spec, described.model)
    print(f"run         {folder.path}")
    print(f"task        {described.task_name} {pairs(config['task'], 'name')}")
    print(f"model       {described.model.mixer} {pairs(config['model'], 'mixer', 'mixer_options')}")
    print(f"mixer       {pairs(described.model.mixer_options)}")
    print(f"training    {pairs(config['training'])}")
    print(f"parameters  {model.num_parameters():,}")
    if spec.kind == "language":
        length = spec.length
        size = model.state_num_bytes(length=1)
        if size != model.state_num_bytes(length=2):  # it grows, and only reading tells how far
            size = model.state_num_bytes(length=length)
        streaming = f"{size:,} bytes a sequence when streaming, after {length:,} steps"
        print(f"state       {streaming if size else 'none: with these options it cannot stream'}")
    if evaluations := folder.read_evaluations():
        print(f"evaluated   {pairs(evaluations[-1], 'kind')}")
    checkpoint = folder.last_checkpoint()
    print(f"checkpoint  {checkpoint.name if checkpoint else 'none'}")
    figures = sorted(path.name for path in folder.figures_path.glob("*.png"))
    print(f"figures     {', '.join(figures) or 'none'}")
    return 0


def export(run: RunPath, to_hub_folder: Path) -> int:
    """Write a run's best model for the Hugging Face Hub, with the code that runs it.

    The folder loads where Polewise is not installed. For example:
      polewise export runs/demo-20260101-120000/text --to-hub-folder my-model

    Args:
        run: The run folder.
        to_hub_folder: New or empty folder for weights, configuration, tokenizer and code.
    """
    folder = RunFolder.open(run)
    if to_hub_folder.exists() and (not to_hub_folder.is_dir() or any(to_hub_folder.iterdir())):
        raise ValueError(f"to_hub_folder must be a new or empty folder; {to_hub_folder} exists.")
    from polewise.models.hub import export_for_hub
    from polewise.models.progress_bars import without_progress_bars

    model: Any = folder.load_model()
    with explained_saving("the model", to_hub_folder, then="export it again"):
        to_hub_folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=to_hub_folder, prefix=".") as partial:
            with without_progress_bars():
                export_for_hub(model, partial)
            for path in Path(partial).iterdir():
                path.rename(to_hub_folder / path.name)
    print(f"everything is in {to_hub_folder}; its README.md says how to load it")
    return 0


def serve(run: RunPath, host: str = "127.0.0.1", port: int = 8000) -> int:
    """Answer OpenAI-style completion and chat requests with a run's best model.

    It listens until Ctrl-C; the answers are streamed to those who ask for it. For example:
      polewise serve runs/demo-20260101-120000/text
      polewise serve runs/demo-20260101-120000/text --port 8080

    Args:
        run: The run folder of a text run.
        host: Address to listen at; 0.0.0.0 also answers other machines.
        port: Port to listen at.
    """
    if not 0 < port < 2**16:
        raise ValueError(f"port must be between 1 and 65535; got {port}.")
    path = require_text_run(run).verified_model_path()
    from polewise.models import serving

    serving.require_free_port(host, port)
    print(f'http://{host}:{port}/v1 will answer requests for "model": "{path}"', flush=True)
    try:
        serving.serve(path, host=host, port=port)
    except ImportError as error:
        raise ValueError(str(error)) from error
    except KeyboardInterrupt as stop:
        return exit_code(stop)
    return 0


def require_text_run(run: Path) -> RunFolder:
    """Return the folder of a run of text.

    Raises:
        ValueError: it is no run folder, or one of another task.
    """
    folder = RunFolder.open(run)
    described = folder.read_run()
    if not isinstance(described.task, TextTask):
        raise ValueError(f"run must be a text run; {run} is one of {described.task_name}.")
    return folder

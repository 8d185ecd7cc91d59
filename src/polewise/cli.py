"""The commands. Each parses, calls, prints; what they do is elsewhere.

Exit codes: 0 success, 1 the work failed (training met NaN, the demo did not reach 100 %), 2 a
mistake in the command (one line on stderr, nothing created), 130 Ctrl-C (the run is saved).
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import inspect
import io
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction, arg

from polewise.mixers import MIXERS
from polewise.recipes import CHUNK_LENGTH, DemoOptions, demo_text, digits, focus_recall, run_demo
from polewise.tasks import ImagesTask, RecallTask, TextTask
from polewise.training import (
    ModelOptions,
    NonFiniteError,
    Outcome,
    Run,
    RunFolder,
    TrainingOptions,
    evaluate,
    train,
)
from polewise.training import resume as resume_run
from polewise.training.run import did_you_mean, mixer_option_types

EXIT_FAILED = 1
EXIT_MISTAKE = 2
EXIT_INTERRUPTED = 130

_RECALL, _TEXT, _IMAGES = focus_recall(), demo_text(), digits()

RunPath = Annotated[Positional[Path], arg(metavar="RUN")]


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """The model."""

    mixer: str = "focus"
    """The mixer in every block. `polewise mixers` lists them."""
    set: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="NAME=VALUE")] = ()
    """An option of the mixer, such as chunk_length=32. `polewise mixers focus` lists them."""
    hidden_size: int = 64
    """Channels."""
    num_layers: int = 2
    """Blocks."""
    intermediate_size: int | None = None
    """Channels inside the feed-forward part; None takes twice the hidden size."""

    @classmethod
    def like(cls, options: ModelOptions) -> ModelFlags:
        """Return the flags that stand for a recipe's model."""
        return cls(
            mixer=options.mixer,
            hidden_size=options.hidden_size,
            num_layers=options.num_layers,
            intermediate_size=options.intermediate_size,
        )

    def over(self, recipe: ModelOptions) -> ModelOptions:
        """Return the model's options; the recipe's mixer options stay for the recipe's mixer."""
        kept = recipe.mixer_options if self.mixer == recipe.mixer else {}
        return ModelOptions(
            mixer=self.mixer,
            mixer_options={**kept, **_parse_settings(self.set)},
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            intermediate_size=self.intermediate_size,
        )


def train_recall(
    task: OmitArgPrefixes[RecallTask] = _RECALL.task,  # type: ignore[assignment]
    model: OmitArgPrefixes[ModelFlags] = ModelFlags.like(_RECALL.model),  # noqa: B008
    training: OmitArgPrefixes[TrainingOptions] = _RECALL.training,
    out: Path | None = None,
) -> int:
    """Train on associative recall: after many key-value pairs, what belonged to this key?

    Stops at 100 % held-out accuracy. Inputs are aligned to the mixer's chunks unless --align-to
    says otherwise. Go on with a stopped run: polewise train --resume RUN.

    For example:
      polewise train recall --length 256
      polewise train recall --mixer attention --max-seconds 300
      polewise train recall --num-train 2000 --set chunk_length=64

    Args:
        task: The task.
        model: The model.
        training: The training.
        out: New folder for the run; None makes runs/TASK-MIXER-DATE-TIME.
    """
    options = model.over(_RECALL.model)
    chunk_length = options.mixer_options.get("chunk_length")
    if chunk_length is not None and task.align_to == CHUNK_LENGTH:
        task = replace(task, align_to=chunk_length)
    return _train(task, options, training, out)


def train_text(
    task: OmitArgPrefixes[TextTask] = _TEXT.task,  # type: ignore[assignment]
    model: OmitArgPrefixes[ModelFlags] = ModelFlags.like(_TEXT.model),  # noqa: B008
    training: OmitArgPrefixes[TrainingOptions] = _TEXT.training,
    out: Path | None = None,
) -> int:
    """Train a byte-level language model on any text.

    Go on with a stopped run: polewise train --resume RUN.

    For example:
      polewise train text
      polewise train text --source novel.txt --max-seconds 900
      polewise train text --source dickens --hidden-size 256 --num-layers 6

    Args:
        task: The task.
        model: The model.
        training: The training.
        out: New folder for the run; None makes runs/TASK-MIXER-DATE-TIME.
    """
    return _train(task, model.over(_TEXT.model), training, out)


def train_images(
    task: OmitArgPrefixes[ImagesTask] = _IMAGES.task,  # type: ignore[assignment]
    model: OmitArgPrefixes[ModelFlags] = ModelFlags.like(_IMAGES.model),  # noqa: B008
    training: OmitArgPrefixes[TrainingOptions] = _IMAGES.training,
    out: Path | None = None,
) -> int:
    """Train on images read pixel by pixel: digits, sequential and permuted MNIST.

    Go on with a stopped run: polewise train --resume RUN.

    For example:
      polewise train images
      polewise train images --source mnist --max-seconds 900
      polewise train images --source mnist --permuted --num-train 10000

    Args:
        task: The task.
        model: The model.
        training: The training.
        out: New folder for the run; None makes runs/TASK-MIXER-DATE-TIME.
    """
    return _train(task, model.over(_IMAGES.model), training, out)


def resume(run: RunPath, max_steps: int | None = None, max_seconds: float | None = None) -> int:
    """Go on with a run from its last checkpoint, with its own options.

    For example:
      polewise resume runs/text-focus-20260101-120000
      polewise resume runs/text-focus-20260101-120000 --max-seconds 1800

    Args:
        run: The run folder.
        max_steps: A new budget in steps, counted from the run's beginning.
        max_seconds: A new budget in seconds, counted from the run's beginning.
    """
    return _finish(resume_run(run, max_steps=max_steps, max_seconds=max_seconds))


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
    task = folder.read_run().task
    if isinstance(task, TextTask | ImagesTask):
        task = replace(task, part=part)  # type: ignore[arg-type]
    elif part != "valid":
        raise ValueError(f"part must be valid for recall, which has one held-out set; got {part}.")
    if isinstance(task, TextTask):
        task = replace(task, eval_bytes=0)
    task.prepare()
    metrics = evaluate(folder.load_model(), task)
    if isinstance(task, TextTask):
        metrics["xz_bits_per_byte"] = task.compressor_bits_per_byte()
    print(json.dumps({"part": part, **metrics}))
    return 0


def generate(
    run: RunPath,
    prompt: str,
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = None,
    seed: int = 0,
) -> int:
    """Continue a prompt with a trained text model, byte by byte, as it is written.

    For example:
      polewise generate runs/demo-20260101-120000/text --prompt "The "

    Args:
        run: The run folder of a text run.
        prompt: The text to continue; not empty.
        max_new_tokens: Bytes to write.
        temperature: Below 1 likelier, above 1 wilder; 0 always takes the likeliest byte.
        top_k: Draw among so many likeliest bytes only.
        seed: Chooses among the possible continuations.
    """
    from polewise.models import generate as stream

    folder = RunFolder.open(run)
    if not isinstance(folder.read_run().task, TextTask):
        raise ValueError(f"run must be a text run; {run} is one of {folder.read_run().task_name}.")
    if not prompt:
        raise ValueError("prompt must not be empty.")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1; got {max_new_tokens}.")
    if not temperature >= 0:
        raise ValueError(f"temperature must be at least 0; got {temperature}.")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1; got {top_k}.")
    model = folder.load_model()
    tokens = stream(
        model,
        torch.tensor([list(prompt.encode())]),
        max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        generator=torch.Generator().manual_seed(seed),
    )
    sys.stdout.write(prompt)
    to_text = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        sys.stdout.write(to_text.decode(bytes([token])))
        sys.stdout.flush()
    sys.stdout.write(to_text.decode(b"", final=True) + "\n")
    return 0


def info(run: RunPath) -> int:
    """Say what a run is: options, size, state, how far it got.

    For example:
      polewise info runs/demo-20260101-120000/text

    Args:
        run: The run folder.
    """
    folder = RunFolder.open(run)
    config, records = folder.read_config(), folder.read_metrics()
    described = folder.read_run()
    model: Any = folder.load_model()
    print(f"run         {folder.path}")
    print(f"task        {described.task_name} {_pairs(config['task'], 'name')}")
    print(f"model       {described.model.mixer} {_pairs(config['model'], 'mixer')}")
    print(f"training    {_pairs(config['training'])}")
    print(f"parameters  {sum(p.numel() for p in model.parameters()):,}")
    if described.task.spec.kind == "language":
        print(f"state       {model.state_num_bytes(batch=1):,} bytes per sequence when streaming")
    evaluations = [record for record in records if record["kind"] == "eval"]
    if evaluations:
        print(f"evaluated   {_pairs(evaluations[-1], 'kind')}")
    checkpoint = folder.last_checkpoint()
    print(f"checkpoint  {checkpoint.name if checkpoint else 'none'}")
    figures = sorted(path.name for path in folder.figures_path.glob("*.png"))
    print(f"figures     {', '.join(figures) or 'none'}")
    return 0


def mixers(name: Annotated[Positional[str], arg(metavar="NAME")] = "") -> int:
    """List the mixers, or the options of one with their defaults.

    For example:
      polewise mixers
      polewise mixers focus

    Args:
        name: A mixer.
    """
    if name and name not in MIXERS:
        raise ValueError(
            f"mixer must be one of {', '.join(MIXERS)}; got {name!r}.{did_you_mean(name, MIXERS)}"
        )
    for mixer in [name] if name else MIXERS:
        summary = (MIXERS[mixer].__doc__ or "").strip().splitlines()
        print(f"{mixer:16} {summary[0] if summary else ''}")
        if name:
            defaults = {field.name: field.default for field in fields(MIXERS[mixer])}
            for option in mixer_option_types(mixer):
                print(f"  --set {option}={json.dumps(defaults[option], default=str)}")
    return 0


def data(fetch: str | None = None) -> int:
    """List the data sets: which are found, and what to place where for the others.

    For example:
      polewise data
      polewise data --fetch enwik8

    Args:
        fetch: Download the public original of this data set and check it.
    """
    from polewise.tasks.data_sets import DATA_SETS, data_folders, locate
    from polewise.tasks.fetch import fetch_data_set

    if fetch is not None:
        for path in fetch_data_set(fetch, say=print):
            print(f"placed {path}")
        return 0
    print("looked in: " + ", ".join(str(folder) for folder in data_folders()))
    print("embedded         found: Python's own manual, for `train text`")
    print("digits           found with scikit-learn: 8 x 8 digits, for `train images`")
    for name, data_set in DATA_SETS.items():
        found = [locate(file) for file in data_set.files]
        if all(found):
            where = str(found[0] if len(found) == 1 else found[0].parent)  # type: ignore[union-attr]
            print(f"{name:16} found: {where}")
        else:
            folder = os.environ.get("POLEWISE_DATA") or "data"
            missing = [
                f"{folder}/{file.paths[0]}"
                for file, path in zip(data_set.files, found, strict=True)
                if path is None
            ]
            print(
                f"{name:16} missing: `polewise data --fetch {name}`, or place {', '.join(missing)}"
            )
        print(f"{'':16} {data_set.what}")
    return 0


def demo(options: OmitArgPrefixes[DemoOptions] = DemoOptions()) -> int:  # noqa: B008
    """Train Focus on recall and on text, and write some: under six minutes on two cores.

    Exits with 0 when held-out recall reached 100 %, else with 1. For example:
      polewise demo
      polewise demo --text novel.txt

    Args:
        options: The demo.
    """
    from polewise.analysis import write_figures

    return run_demo(options, write_figures)


COMMANDS: dict[str, Callable[..., int]] = {
    "demo": demo,
    "train recall": train_recall,
    "train text": train_text,
    "train images": train_images,
    "resume": resume,
    "eval": eval,
    "generate": generate,
    "info": info,
    "mixers": mixers,
    "data": data,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "--traceback" in words:
        return _run([word for word in words if word != "--traceback"])
    try:
        return _run(words)
    except ValueError as error:
        return _fail(str(error), EXIT_MISTAKE)
    except NonFiniteError as error:
        return _fail(str(error), EXIT_FAILED)
    except KeyboardInterrupt:
        return _fail("stopped at once; what was saved before is kept", EXIT_INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(words: list[str]) -> int:
    if " ".join(words) in ("", "-h", "--help", "train -h", "train --help"):
        print(_overview())
        return 0
    name, rest = _choose_command(words)
    call = _parse(name, _with_budget(rest) if name.startswith("train") else rest)
    return 0 if call is None else call()


def _overview() -> str:
    lines = [
        "usage: polewise COMMAND [OPTIONS]",
        "",
        "Polewise: sequence models that place their own poles.",
        "",
    ]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:14} {inspect.getdoc(command).splitlines()[0]}")  # type: ignore[union-attr]
    return "\n".join(
        [
            *lines,
            "",
            "Begin with `polewise demo`. Each command explains itself: polewise train text --help",
            "An error is one line; with --traceback, anywhere, Python's whole account of it.",
            "Exit codes: 0 success, 1 failed, 2 a mistake in the command, 130 Ctrl-C (run saved).",
        ]
    )


def _choose_command(words: list[str]) -> tuple[str, list[str]]:
    """Return the command and its arguments. `train ... --resume RUN` is `resume RUN`."""
    if words[0] == "train" and "--resume" in words:
        at = words.index("--resume")
        before = [word for word in words[1:at] if f"train {word}" not in COMMANDS]
        return "resume", [*before, *words[at + 1 :]]
    for taken in (2, 1):
        name = " ".join(words[:taken])
        if name in COMMANDS:
            return name, words[taken:]
    if words[0] == "train":
        tasks = [name.split()[1] for name in COMMANDS if name.startswith("train ")]
        got = f"got {words[1]!r}.{did_you_mean(words[1], tasks)}" if words[1:] else "got nothing."
        raise ValueError(f"train must be followed by a task, {', '.join(tasks)}; {got}")
    known = list(dict.fromkeys(name.split()[0] for name in COMMANDS))
    raise ValueError(
        f"command must be one of {', '.join(known)}; got {words[0]!r}."
        f"{did_you_mean(words[0], known)}"
    )


def _parse(name: str, words: list[str]) -> Callable[[], int] | None:
    """Return the call that the words ask for, or None when they asked for help.

    Raises:
        ValueError: the words are wrong.
    """
    command = COMMANDS[name]

    @functools.wraps(command)
    def bind(*positional: Any, **named: Any) -> Callable[[], int]:
        return lambda: command(*positional, **named)

    panel = io.StringIO()
    try:
        with contextlib.redirect_stderr(panel):
            return tyro.cli(bind, prog=f"polewise {name}", args=words)
    except SystemExit as stop:
        if not stop.code:
            return None
        raise ValueError(_one_line(panel.getvalue(), name)) from None


def _one_line(panel: str, command: str) -> str:
    """Fold the panel that tyro prints into one line: what is wrong, and the nearest option."""
    lines = [line.strip(" │") for line in panel.splitlines()]
    # The first line is the title; where the terminal has no box characters, a rule follows it.
    body = [line for line in lines[1:] if line and not line.startswith("╰")]
    body = body[1:] if body and _is_rule(body[0]) else body
    rules = [at for at, line in enumerate(body) if _is_rule(line)] + [len(body)]
    what = " ".join(body[: rules[0]])
    if what.startswith("Missing from") and len(body) > 1:
        return f"{body[1]} is missing. Try: polewise {command} --help"
    what = re.sub(r"^Error parsing (task|model|training|options): ", "", what)
    what = re.sub(
        r"^Error parsing (--\S+): invalid literal for int\(\) with base 10: (.*)",
        r"\1 must be an integer; got \2.",
        what,
    )
    if what.startswith("Unrecognized options: "):
        what = what.replace("Unrecognized options: ", "unknown option ").replace(", ", " ")
    near = re.findall(r"^(--[a-z][\w-]*)", "\n".join(body[rules[0] :]), flags=re.MULTILINE)
    if near and what.startswith("unknown option"):
        return f"{what}. Did you mean {near[0]}?"
    return f"{what}" if what.endswith(".") else f"{what}. Try: polewise {command} --help"


def _is_rule(line: str) -> bool:
    return len(line) > 3 and not line.strip("─-")


def _with_budget(words: list[str]) -> list[str]:
    """Let a budget in seconds replace a recipe's budget in steps, and the other way round."""
    given = {word.split("=")[0].replace("_", "-") for word in words}
    if "--max-seconds" in given and "--max-steps" not in given:
        return [*words, "--max-steps", "None"]
    if "--max-steps" in given and "--max-seconds" not in given:
        return [*words, "--max-seconds", "None"]
    return words


def _parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Return NAME=VALUE pairs with their values as numbers, booleans, None or text."""
    words = {"none": None, "true": True, "false": False}
    options: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise ValueError(f"set must be given as NAME=VALUE; got {setting!r}.")
        if value.lower() in words:
            options[name.replace("-", "_")] = words[value.lower()]
            continue
        try:
            options[name.replace("-", "_")] = json.loads(value)
        except ValueError:
            options[name.replace("-", "_")] = value
    return options


def _train(
    task: RecallTask | TextTask | ImagesTask,
    model: ModelOptions,
    training: TrainingOptions,
    out: Path | None,
) -> int:
    run = Run(task=task, model=model, training=training)
    if out is None:
        out = Path("runs") / f"{run.task_name}-{model.mixer}-{datetime.now():%Y%m%d-%H%M%S}"
    return _finish(train(run, out, title=run.task_name))


def _finish(outcome: Outcome) -> int:
    """Draw the figures, say where everything lies, and return the exit code."""
    folder = outcome.folder
    if not outcome.is_main_process:
        return 0
    if outcome.status == "interrupted":
        print(f"stopped after {outcome.step} steps; go on with: polewise resume {folder.path}")
        return EXIT_INTERRUPTED
    from polewise.analysis import write_figures

    write_figures(folder)
    print(f"finished after {outcome.step} steps: {_pairs(outcome.metrics)}")
    print(f"everything is in {folder.path}")
    return 0


def _pairs(values: dict[str, Any], *without: str) -> str:
    return " ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in values.items()
        if name not in without
    )


def _fail(message: str, code: int) -> int:
    print(f"polewise: error: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

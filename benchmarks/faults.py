"""Break training runs on purpose, thousands of times, and see that nothing is lost.

    python benchmarks/faults.py                        # everything: about an hour on two cores
    python benchmarks/faults.py kills --kills 20       # a part, and less of it

kills            a run is killed (SIGKILL) at random moments and resumed until it is done: its
                 weights and its log equal those of a run that nobody touched, every checkpoint is
                 whole, at most one interval of work is lost
operations       the same, killed exactly before each of its file operations in turn
configurations   random configurations: an answer of one line, and no folder left behind; or a run
files            mutated checkpoints, configurations, logs, models, texts and images: an answer of
                 one line, or correct work; never a crash, a hang, or much memory
overhead         what manifests and flushing to the disk cost, beside 15 minutes of training

Every run and every reading happens in a process of its own, forked from one that has imported torch
already, so that a crash of the interpreter is seen and counted. The result is
`benchmarks/results/faults-DATE.json`; tests/faults/ runs small samples of the same functions.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import io
import json
import math
import multiprocessing
import os
import platform
import random
import resource
import shutil
import signal
import statistics
import struct
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from rich.console import Console
from rich.progress import Progress as Bar
from safetensors.torch import load_file, save_file, save_model

from polewise.mixers import MIXERS, mixer_option_types
from polewise.recipes import demo_text
from polewise.tasks import ImagesTask, RecallTask, TextTask
from polewise.tasks.images import read_mnist
from polewise.training import (
    ModelOptions,
    Run,
    RunFolder,
    TrainingError,
    TrainingOptions,
    build_model,
    resume,
    run_from_json,
    run_to_json,
    train,
)
from polewise.training.checkpoint import (
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    named_averages,
    save_checkpoint,
    verify_checkpoint,
)
from polewise.training.manifest import MANIFEST, write_manifest
from polewise.training.optimizer import build_optimizer
from polewise.training.progress import Progress

RESULTS = Path(__file__).parent / "results"
PRELOADED = [
    "polewise.models.huggingface", "polewise.recipes", "rich.progress", "torch.utils.tensorboard",
]  # fmt: skip
SECONDS_TO_HANG = 120
MOST_MEMORY = 12 * 2**30
"""Address space of a process that tries inputs: one that asks for more fails, and alone."""

KILLED_RUN = Run(
    task=RecallTask(length=6, vocab_size=6, num_eval=8, batch_size=4),
    model=ModelOptions(mixer="attention", hidden_size=8, num_layers=1),
    training=TrainingOptions(
        max_steps=12, log_every=3, evaluate_every=4, checkpoint_every=2, accumulate=2
    ),
)
"""The run that is killed: small, and saving most of the time, so that kills hit the saving."""


# Processes


def processes() -> multiprocessing.context.ForkServerContext:
    """Return a way to start processes in milliseconds: forks of one that imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def train_or_resume(folder: str, kill_at: int | None = None) -> None:
    """Train `KILLED_RUN` in `folder`, or go on with it; die before file operation `kill_at`."""
    torch.set_num_threads(1)
    if kill_at is not None:
        _die_before_operation(kill_at, folder)
    console = Console(quiet=True)
    if Path(folder).exists():
        resume(folder, console=console)
    else:
        train(KILLED_RUN, folder, console=console)


_OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")


def _die_before_operation(number: int, folder: str) -> None:
    """Have the process killed before it does its so manieth thing to a file under `folder`."""
    left = [number]
    parts = (folder, str(Path(folder).with_name(f".{Path(folder).name}.partial")))

    def count(event: str, arguments: tuple) -> None:
        if event in _OPERATIONS and str(arguments[0]).startswith(parts):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


@contextmanager
def started(target: Callable, *arguments: Any) -> Iterator[multiprocessing.process.BaseProcess]:
    """A process that is not there any more afterwards."""
    process = processes().Process(target=target, args=arguments, daemon=True)
    process.start()
    try:
        yield process
    finally:
        if process.is_alive():
            process.kill()
        process.join()


# Kills


@dataclasses.dataclass
class Kills:
    """What became of the killed runs."""

    kills: int = 0
    hit_a_checkpoint: int = 0
    hit_a_model: int = 0
    before_the_first_checkpoint: int = 0
    most_steps_lost: int = 0
    runs: int = 0


def kill_at_random_moments(
    count: int, seed: int, folder: Path, step: Callable[[], object] = lambda: None
) -> Kills:
    """Kill runs `count` times in all; resume each until it is done, and check what is left.

    Raises:
        AssertionError: a run ended otherwise than one that nobody touched, a checkpoint is
            damaged, or more than one interval of work was lost.
    """
    chance = random.Random(seed)
    whole = folder / "whole"
    for place in (folder / "first", whole):  # the first one waits for the imports
        begin = time.perf_counter()
        with started(train_or_resume, str(place)) as process:
            process.join()
        seconds = time.perf_counter() - begin
    found = Kills()
    while found.kills < count:
        victim = folder / f"killed-{found.runs}"
        done = False
        while not done:
            with started(train_or_resume, str(victim)) as process:
                process.join(chance.uniform(0, seconds) if found.kills < count else None)
                done = process.exitcode == 0
                if not done:
                    process.kill()
            if not done:
                process.join()
                if process.exitcode == 0:  # it came to its end before the signal came to it
                    done = True
                    continue
                assert process.exitcode == -signal.SIGKILL, f"resume ended with {process.exitcode}"
                done = _is_complete(victim)  # killed between its last act and its end
                found.kills += 1
                _look_at_killed(victim, found)
                step()
        _require_equal(whole, victim)
        shutil.rmtree(victim)
        found.runs += 1
    return found


def kill_at_operations(
    numbers: Iterator[int], folder: Path, step: Callable[[], object] = lambda: None
) -> Kills:
    """Kill one run before each of these file operations; resume it and check what is left.

    Stops at the first number that a run does not reach.
    """
    whole = folder / "whole"
    with started(train_or_resume, str(whole)) as process:
        process.join()
    found = Kills()
    for number in numbers:
        victim = folder / f"killed-at-{number}"
        with started(train_or_resume, str(victim), number) as process:
            process.join()
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL, process.exitcode
        found.kills += 1
        _look_at_killed(victim, found)
        if not _is_complete(victim):
            with started(train_or_resume, str(victim)) as process:
                process.join()
                assert process.exitcode == 0, f"resume ended with {process.exitcode}"
        _require_equal(whole, victim)
        shutil.rmtree(victim)
        found.runs += 1
        step()
    return found


def _look_at_killed(folder: Path, found: Kills) -> None:
    """Check what a killed process left, and note what it was killed at."""
    if not folder.exists():
        found.before_the_first_checkpoint += 1
        return
    checkpoints = list_checkpoints(folder / "checkpoints")
    for path in checkpoints:
        verify_checkpoint(path)
    left = [path.name for path in folder.rglob(".*") if path.is_dir()]
    found.hit_a_checkpoint += any(name.startswith(".step-") for name in left)
    found.hit_a_model += any(name.startswith(".model") for name in left)
    logged = max((record["step"] for record in RunFolder(folder).read_metrics()), default=0)
    saved = int(checkpoints[-1].name.removeprefix("step-")) if checkpoints else 0
    found.before_the_first_checkpoint += not checkpoints
    found.most_steps_lost = max(found.most_steps_lost, logged - saved)
    assert logged - saved <= KILLED_RUN.training.checkpoint_every, (logged, saved)


def _is_complete(folder: Path) -> bool:
    return (folder / "checkpoints" / f"step-{KILLED_RUN.training.max_steps}").is_dir()


def _require_equal(whole: Path, other: Path) -> None:
    for name in ("model", "model-last"):
        a, b = (load_file(folder / name / "model.safetensors") for folder in (whole, other))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a), f"{other}: {name} differs"
    logs = [
        [
            {k: v for k, v in record.items() if k not in ("seconds", "positions_per_second")}
            for record in RunFolder(folder).read_metrics()
        ]
        for folder in (whole, other)
    ]
    assert logs[0] == logs[1], f"{other}: the log differs"


# Random configurations

NASTY = [
    None, True, -1, 0, 1, 2, 3, 7, 2**31, 2**63, 10**400, -0.5, 0.5, 1.0, 1e-300, 1e300,
    float("nan"), float("inf"), "", "8", "focus", "attention", "associative", "test", "digits",
    "bfloat16", "continue", "roll_back",
    "/", ".", "nowhere.txt", "\0", "a" * 5000, [], [1], [0.9, 0.99], {}, {"chunk_length": 8},
    {"chunk_lenght": 8}, {"bin_length": 8, "windows": 3}, {"filters": 2**40}, {1: 2},
]  # fmt: skip

SMALL = {
    "recall": RecallTask(length=6, vocab_size=6, num_eval=4, batch_size=2),
    "text": TextTask(length=8, batch_size=2, eval_bytes=16),
    "images": ImagesTask(source="digits", num_train=8, num_eval=4, batch_size=2),
}


def random_configuration(chance: random.Random) -> dict[str, Any]:
    """Return the JSON of a run with some parts changed at random, most of them for the worse."""
    task = chance.choice(list(SMALL.values()))
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
    AcceleratorState._reset_state(reset_partial_state=True)  # another precision may come
    try:
        run = _first_step_of(run_from_json(values))
        if run is None:
            return "too large to train here"
        train(run, out, console=Console(quiet=True))
    except ValueError as error:
        _require_one_answer(error)
        assert not out.exists(), "an answer, and a folder with it"
        return "refused"
    except TrainingError as error:
        _require_one_answer(error)
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


def _require_one_answer(error: Exception) -> None:
    assert str(error), "an answer without words"
    assert len(str(error)) < 10_000, f"an answer of {len(str(error))} characters"


# Mutated files


def mutate(content: bytes, chance: random.Random) -> bytes:
    """Return the content with something wrong in it."""
    changed = bytearray(content)
    at = chance.randrange(len(changed)) if changed else 0
    size = chance.choice([1, 4, 64])
    what = chance.randrange(8)
    if what == 0 and changed:
        changed[at] ^= 1 << chance.randrange(8)
    elif what == 1:
        del changed[at:]
    elif what == 2:
        changed[at : at + size] = chance.randbytes(size)
    elif what == 3:
        changed[at : at + size] = bytes(size)
    elif what == 4:
        changed[at:at] = changed[at : at + size]
    elif what == 5:
        del changed[at : at + size]
    elif what == 6:
        changed += chance.randbytes(size)
    else:
        digits = [place for place, byte in enumerate(changed) if 48 <= byte <= 57]
        if digits:
            changed[chance.choice(digits)] = chance.choice(b"0123456789-e.")
    return bytes(changed)


def prepare_files(folder: Path) -> None:
    """Make everything that is going to be broken."""
    train(KILLED_RUN, folder / "run", console=Console(quiet=True))
    text = "It was the best of times, it was the worst of times. " * 20
    (folder / "text").mkdir()
    (folder / "text" / "plain.txt").write_text(text)
    (folder / "text" / "packed.gz").write_bytes(gzip.compress(text.encode()))
    with zipfile.ZipFile(folder / "text" / "packed.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("text", text)
    (folder / "mnist").mkdir()
    for name, sizes in (("images.gz", (20, 28, 28)), ("labels.gz", (20,))):
        header = bytes([0, 0, 8, len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes)
        content = header + bytes(number % 10 for number in range(math.prod(sizes)))
        (folder / "mnist" / name).write_bytes(gzip.compress(content))


def try_file(folder: Path, chance: random.Random) -> str:
    """Break one file, read it as a user's command would, put it back; return what came of it.

    Raises:
        AssertionError: a damaged checkpoint or model was taken for a good one.
        Exception: whatever is not documented.
    """
    readers: dict[str, Callable[[Path, bool], object]] = {
        "run/checkpoints/step-12/*": _read_checkpoint,
        "run/model/*": _read_model,
        "run/config.json": _read_config,
        "run/metrics.jsonl": _read_log,
        "text/*": _read_text,
        "mnist/*": _read_images,
    }
    pattern = chance.choice(list(readers))
    path = chance.choice(sorted(folder.glob(pattern)))
    before = path.read_bytes()
    content = mutate(before, chance)
    manifest = path.with_name(MANIFEST)
    # Sealed, the manifest agrees with what is broken: what reads the file itself must notice.
    seals = manifest.exists() and path != manifest and chance.random() < 0.5
    described = manifest.read_bytes() if seals else b""
    path.write_bytes(content)
    try:
        if seals:
            write_manifest(path.parent)
        readers[pattern](path, seals or content == before)
        return "read"
    except ValueError as error:
        _require_one_answer(error)
        return "refused"
    finally:
        path.write_bytes(before)
        if seals:
            manifest.write_bytes(described)


def _read_checkpoint(path: Path, may_pass: bool) -> None:
    model = build_model(KILLED_RUN.task.spec, KILLED_RUN.model)
    optimizer = build_optimizer(model, KILLED_RUN.training)
    load_checkpoint(path.parent, model, optimizer)
    assert may_pass, f"{path.name} was changed and nobody noticed"
    found = find_checkpoint(path.parents[1], max_bytes=None, note=lambda _: None)
    assert found == path.parent


def _read_model(path: Path, may_pass: bool) -> None:
    RunFolder(path.parents[1]).load_model()
    assert may_pass, f"{path.name} was changed and nobody noticed"


def _read_config(path: Path, _: bool) -> None:
    RunFolder.open(path.parent).read_run()


def _read_log(path: Path, _: bool) -> None:
    for record in RunFolder(path.parent).read_metrics():
        assert isinstance(record["step"], int)


def _read_text(path: Path, _: bool) -> None:
    task = TextTask(source=str(path), length=16, batch_size=2)
    next(task.train_batches(0))
    for _batch in task.eval_batches():
        pass


def _read_images(path: Path, _: bool) -> None:
    pair = [path.with_name("images.gz"), path.with_name("labels.gz")]
    images = read_mnist(pair, slice(None))
    assert images.pixels.shape == (len(images.labels), 784)


# Many of them


def try_many(
    what: str, count: int, seed: int, folder: Path, step: Callable[[], object] = lambda: None
) -> dict[str, int]:
    """Try `count` configurations or files in processes of their own; count what came of them.

    Raises:
        AssertionError: a process crashed, hung, or met what is not documented.
    """
    answers: Counter[str] = Counter()
    batch = 250
    for first in range(0, count, batch):
        numbers = range(first, min(first + batch, count))
        receiver, sender = processes().Pipe(duplex=False)
        with started(_try_batch, what, seed, numbers, str(folder), sender) as process:
            sender.close()
            for number in numbers:
                assert receiver.poll(SECONDS_TO_HANG), f"{what} {number} of seed {seed} hangs"
                try:
                    answer = receiver.recv()
                except EOFError:
                    process.join()
                    raise AssertionError(
                        f"{what} {number} of seed {seed}: crashed with {process.exitcode}"
                    ) from None
                assert not answer.startswith("UNDOCUMENTED"), answer
                answers[answer] += 1
                step()
            answers["most megabytes"] = max(answers["most megabytes"], receiver.recv())
    return dict(answers)


def _try_batch(what: str, seed: int, numbers: range, folder: str, sender: Any) -> None:
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    with tempfile.TemporaryDirectory(dir=folder) as own:
        if what == "files":
            prepare_files(Path(own))
        sys.stdout = sys.stderr = io.StringIO()
        for number in numbers:
            chance = random.Random(f"{what} {seed} {number}")
            try:
                if what == "files":
                    answer = try_file(Path(own), chance)
                else:
                    answer = try_configuration(random_configuration(chance), Path(own))
            except BaseException as error:
                answer = f"UNDOCUMENTED {what} {number} of seed {seed}: {error!r}"
            sender.send(answer)
        sender.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


# Overhead


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
        averages = dict(named_averages(optimizer))
        save_checkpoint(folder / "safe", model, averages, progress, keep=2)
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


# Everything


PARTS = ("kills", "operations", "configurations", "files", "overhead")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; without: all of them")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--inputs", type=int, default=10_000, help="configurations, and files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="the JSON; default results/faults-DATE.json")
    options = parser.parse_args()
    # Killed processes leave their semaphores to Python's tracker, which says so at the end.
    os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"
    parts = options.parts or list(PARTS)
    for part in parts:
        if part not in PARTS:
            parser.error(f"parts must be of {', '.join(PARTS)}; got {part!r}")
    out = options.out or RESULTS / f"faults-{date.today()}.json"
    report = {
        "date": str(date.today()),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "seed": options.seed,
    }
    if out.exists():
        report = json.loads(out.read_text()) | report
    with tempfile.TemporaryDirectory() as scratch, Bar(console=Console(stderr=True)) as bar:
        for part in parts:
            folder = Path(scratch) / part
            folder.mkdir()
            totals = {"kills": options.kills, "operations": None, "overhead": None}
            row = bar.add_task(part, total=totals.get(part, options.inputs))

            def step(row: Any = row) -> None:
                bar.advance(row)

            begin = time.perf_counter()
            result: Any
            if part == "kills":
                found = kill_at_random_moments(options.kills, options.seed, folder, step)
                result = dataclasses.asdict(found)
            elif part == "operations":
                found = kill_at_operations(iter(range(1, 10_000)), folder, step)
                result = dataclasses.asdict(found)
            elif part == "overhead":
                result = measure_overhead(folder)
            else:
                result = try_many(part, options.inputs, options.seed, folder, step)
            report[part] = {**result, "took_seconds": round(time.perf_counter() - begin, 1)}
            bar.console.print(part, report[part])
            out.parent.mkdir(exist_ok=True)
            out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""The demo: in minutes, on two cores, a stranger sees Focus learn to recall and to write."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from rich.console import Console
from tyro.conf import OmitArgPrefixes

from polewise.cli.output import EXIT_FAILED
from polewise.cli.train import new_folder
from polewise.recipes import demo_text, focus_recall
from polewise.tasks import RecallTask, TextTask
from polewise.training import Outcome, Run, RunFolder, train
from polewise.training.display import print_line
from polewise.training.run_folder import require_new_folder

PROMPT_BYTES = 64
SAMPLE_BYTES = 400
_BAR = " ==> "


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What the demo trains on, and for how long."""

    text: str = "embedded"
    """The text: `embedded` is Python's own manual; a path, or the name of a data set."""
    out: Path | None = None
    """Folder for the two runs; None makes `runs/demo-DATE-TIME`."""
    recall_seconds: float = 160.0
    """At most so many seconds for recall; it stops at 100 %."""
    text_seconds: float = 155.0
    """Seconds for the text."""


def demo(options: OmitArgPrefixes[DemoOptions] = DemoOptions()) -> int:
    """Train Focus on recall and on text, and write some: under six minutes on two cores.

    Exits with 0 when held-out recall reached 100 %, else with 1. For example:
      polewise demo
      polewise demo --text novel.txt

    Args:
        options: The demo.
    """
    return run_demo(options, Console())


def run_demo(options: DemoOptions, console: Console) -> int:
    """Train on recall, then on text; write a sample; say how it went and where everything lies.

    Returns the exit code: 0, 1 when held-out recall is not 100 %, 130 after Ctrl-C, 143 after
    SIGTERM.
    """
    from polewise.analysis import write_figures

    recall, text = demo_runs(options)
    recall_task, text_task = cast(RecallTask, recall.task), cast(TextTask, text.task)
    text_task.prepare()  # a bad file is refused before the first minute is spent
    out = options.out or new_folder("demo")
    for name in ("recall", "text"):
        require_new_folder(out / name)
    began = time.monotonic()

    def say(line: str = "") -> None:
        print_line(console, line)

    pairs = recall_task.num_pairs
    say(f"1. Recall: {pairs} keys with their values, then a key again. Which was its value?")
    first = train(recall, out / "recall", title="recall", console=console)
    if first.status == "interrupted":
        return _interrupted(first, say)
    say()
    say(f"2. Text: {text_task.source}, byte by byte.")
    second = train(text, out / "text", title="text", console=console)
    if second.status == "interrupted":
        return _interrupted(second, say)
    figures = [*write_figures(first.folder), *write_figures(second.folder)]
    prompt, sample = write_sample(second.folder, text_task)

    accuracy = first.metrics["accuracy"]
    bits = second.metrics["bits_per_byte"]
    compressor = text_task.compressor_bits_per_byte()
    recalled = accuracy == 1.0
    say()
    say(f"3. It writes. Held-out text begins, the model goes on after {_BAR}:")
    say()
    say(f"{prompt}{_BAR}{sample}")
    say()
    say(f"Finished in {(time.monotonic() - began) / 60:.1f} minutes.")
    say(
        f"  recall  {accuracy:.1%} of {recall_task.num_eval} held-out sequences"
        f" after {first.step} steps" + ("" if recalled else ": NOT 100 %, the demo failed")
    )
    say(f"  text    {bits:.3f} bits per byte held out; {_versus(bits, compressor)}")
    say(f"  runs    {first.folder.path}, {second.folder.path}")
    say(f"  figures {len(figures)} in {first.folder.figures_path}, {second.folder.figures_path}")
    say(f"  sample  {second.folder.path / 'sample.txt'}")
    say(f'Go on:    polewise generate {shlex.quote(str(second.folder.path))} --prompt "The "')
    return 0 if recalled else EXIT_FAILED


def demo_runs(options: DemoOptions) -> tuple[Run, Run]:
    """Return the two runs of the demo."""
    recall = focus_recall(256)
    budget = replace(recall.training, max_steps=None, max_seconds=options.recall_seconds)
    text = demo_text(options.text, options.text_seconds)
    return replace(recall, training=budget), text


def write_sample(folder: RunFolder, task: TextTask) -> tuple[str, str]:
    """Continue a line of the held-out text, and keep both in `sample.txt`."""
    from polewise.models import generate

    model = folder.load_model()
    prompt = opening(task.held_out_text())
    tokens = generate(
        model,
        torch.tensor([list(prompt)]),
        SAMPLE_BYTES,
        temperature=0.7,
        generator=torch.Generator().manual_seed(0),
    )
    written = prompt.decode(errors="replace"), bytes(tokens).decode(errors="replace")
    (folder.path / "sample.txt").write_text(_BAR.join(written) + "\n", encoding="utf-8")
    return written


def opening(text: bytes) -> bytes:
    """Return the first `PROMPT_BYTES` of the first paragraph of prose; without one, of the text."""
    prose = re.search(rb"\n\r?\n(?=[A-Z][a-z]+ [a-z ,]{%d})" % (PROMPT_BYTES // 2), text)
    first = prose.end() if prose else 0
    return text[first : first + PROMPT_BYTES]


def _versus(bits: float, compressor: float) -> str:
    if bits < compressor:
        return (
            f"xz -9 needs {compressor:.3f} for the same text, {compressor / bits:.2f} times as much"
        )
    return f"xz -9 needs {compressor:.3f} for the same text: the model does NOT beat it"


def _interrupted(outcome: Outcome, say: Callable[[str], None]) -> int:
    quoted = shlex.quote(str(outcome.folder.path))
    say(f"Stopped after {outcome.step} steps. Go on with: polewise resume {quoted}")
    return outcome.exit_code

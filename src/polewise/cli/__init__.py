"""The commands. Each parses, calls, prints; what they do is elsewhere.

    parsing.py    words to a call, and mistakes to one line each
    train.py      train TASK, for every task; resume
    runs.py       what a finished run is good for: eval, info, export, serve
    streams.py    a byte model over texts without end: generate, stream
    studies.py    questions: study, report
    listings.py   what there is to choose from: mixers, data
    demo.py       in minutes, what Focus learns
    output.py     exit codes, and values on one line

Exit codes: 0 success, 1 the work failed (training met NaN, the demo did not reach 100 %, a file
could not be written, memory ran out), 2 a mistake in the command (one line on stderr, nothing
created), 130 Ctrl-C, 143 SIGTERM and 129 a closed terminal (the run is saved).
"""

from __future__ import annotations

import inspect
import io
import os
import sys
from collections.abc import Sequence

from torch import OutOfMemoryError

from polewise import __version__
from polewise.cli import demo, listings, runs, streams, studies, train
from polewise.cli.output import EXIT_FAILED, EXIT_MISTAKE, exit_code
from polewise.cli.parsing import Command, choose_command, parse
from polewise.training import TrainingError

COMMANDS: dict[str, Command] = {
    "demo": demo.demo,
    **{f"train {name}": command for name, command in train.TRAIN_COMMANDS.items()},
    "resume": train.resume,
    "eval": runs.eval,
    "generate": streams.generate,
    "stream": streams.stream,
    "info": runs.info,
    "export": runs.export,
    "serve": runs.serve,
    "study": studies.study,
    "report": studies.report,
    "mixers": listings.mixers,
    "data": listings.data,
}


_NO_MEMORY = "can't allocate memory"
"""What torch says on a CPU, in a plain RuntimeError."""
_LESS_MEMORY = (
    "Take less of it: a smaller --batch-size (with --accumulate as many times larger), a shorter "
    "--length, --checkpoint-activations, or a smaller model."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    _prepare_streams()
    if "--traceback" in words:
        return _run([word for word in words if word != "--traceback"])
    code = 0
    try:
        code = _run(words)
        sys.stdout.flush()  # here, where it is no error that whoever read has gone
        return code
    except ValueError as error:
        return _fail(str(error), EXIT_MISTAKE)
    except TrainingError as error:
        return _fail(str(error), EXIT_FAILED)
    except KeyboardInterrupt as stop:
        return _fail("stopped at once; what was saved before is kept", exit_code(stop))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code
    except OSError as error:
        return _fail(str(error), EXIT_FAILED)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | OutOfMemoryError) and _NO_MEMORY not in str(error):
            raise
        return _fail(f"out of memory. {_LESS_MEMORY}", EXIT_FAILED)


def _prepare_streams() -> None:
    """Discard what is written to a closed stream; print "?" for what its encoding lacks."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _run(words: list[str]) -> int:
    if " ".join(words) in ("", "-h", "--help", "train -h", "train --help"):
        print(_overview())
        return 0
    if words == ["--version"]:
        print(f"polewise {__version__}")
        return 0
    name, rest = choose_command(words, COMMANDS)
    call = parse(name, COMMANDS[name], rest)
    return 0 if call is None else call()


def _overview() -> str:
    lines = [
        "usage: polewise COMMAND [OPTIONS]",
        "",
        "Polewise: causal sequence models from second-order IIR filters.",
        "",
    ]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:20} {inspect.getdoc(command).splitlines()[0]}")  # type: ignore[union-attr]
    return "\n".join(
        [
            *lines,
            "",
            "Begin with `polewise demo`. Each command explains itself: polewise train text --help",
            "An error is one line; with --traceback, anywhere, Python's whole account of it.",
            "Exit codes: 0 success, 1 failed, 2 a mistake in the command, 130 Ctrl-C (run saved),",
            "143 SIGTERM, 129 terminal closed (run saved).",
        ]
    )


def _fail(message: str, code: int) -> int:
    print(f"polewise: error: {' '.join(message.split())}", file=sys.stderr)
    return code

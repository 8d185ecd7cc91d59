"""The commands that run a byte model over a text without end, and keep its state in a file."""

from __future__ import annotations

import codecs
import hashlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NoReturn

import torch
from torch import Tensor
from tyro.conf import arg

from polewise import states
from polewise.cli.output import Terminated, exit_code
from polewise.cli.parsing import RunPath
from polewise.cli.runs import require_text_run
from polewise.models import generate as draw
from polewise.models.byte_stream import ByteStreamState, byte_costs, start_of_stream
from polewise.models.generation import require_sampling
from polewise.options import require_at_least
from polewise.training.errors import explained_saving


def generate(
    run: RunPath,
    prompt: str,
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = None,
    seed: int = 0,
    state: Path | None = None,
) -> int:
    """Continue a prompt with a trained text model, byte by byte, as it is written.

    With --state the model remembers from call to call what was read and written. For example:
      polewise generate runs/demo-20260101-120000/text --prompt "The "
      polewise generate runs/demo-20260101-120000/text --prompt "The " --state memory
      polewise generate runs/demo-20260101-120000/text --prompt "" --state memory

    Args:
        run: The run folder of a text run.
        prompt: The text to continue; may be empty where a state is continued.
        max_new_tokens: Bytes to write.
        temperature: Below 1 likelier, above 1 wilder; 0 always takes the likeliest byte.
        top_k: Draw among so many likeliest bytes only.
        seed: Chooses among the possible continuations.
        state: File that is continued if it is there, and written at the end, which Ctrl-C and
            SIGTERM may bring.
    """
    folder = require_text_run(run)
    if not prompt and (state is None or not state.exists()):
        raise ValueError("prompt must not be empty where there is no state to continue.")
    require_at_least("max_new_tokens", max_new_tokens, 1)
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be between 0 and 2**63 - 1; got {seed}.")
    require_sampling(temperature, top_k)
    model: Any = folder.load_model()
    before = _read_state(state, model)
    said = os.fsencode(prompt)  # whatever bytes the shell gave
    tokens = draw(
        model,
        torch.cat([before.unread, torch.tensor([list(said)]).long()], 1),
        max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        generator=torch.Generator().manual_seed(seed),
        state=before.model,
    )
    to_text = codecs.getincrementaldecoder("utf-8")(errors="replace")
    sys.stdout.write(to_text.decode(said))
    with _sigterm_interrupts():
        try:
            for token in tokens:
                sys.stdout.write(to_text.decode(bytes([token])))
                sys.stdout.flush()
            sys.stdout.write(to_text.decode(b"", final=True) + "\n")
        except KeyboardInterrupt as stop:
            sys.stdout.write(to_text.decode(b"", final=True) + "\n")
            return exit_code(stop)
        finally:
            _write_state(state, ByteStreamState(tokens.state, tokens.unread), model)
    return 0


def stream(
    run: RunPath,
    source: Annotated[Path | None, arg(name="input")] = None,
    segment_length: int = 4096,
    every: int = 65536,
    state: Path | None = None,
) -> int:
    """Read a text without end and say how many bits per byte the model needs for it.

    Reads standard input, a pipe or something live, in memory that does not grow. A byte that the
    model expects with probability p costs -log2 p bits, the size of the best code for it. The
    first byte of all has nothing before it and costs 8. For example:
      polewise stream runs/demo-20260101-120000/text --input novel.txt
      cat *.txt | polewise stream runs/demo-20260101-120000/text --every 1000000
      tail -f log | polewise stream runs/demo-20260101-120000/text --state memory

    Args:
        run: The run folder of a text run.
        source: File to read instead of standard input.
        segment_length: Bytes that are read at once, at most. The figures do not depend on it.
        every: Bytes between lines.
        state: File that is continued if it is there, and written at the end, which Ctrl-C and
            SIGTERM may bring. Figures are of this call's bytes; what earlier calls read helps to
            expect them.
    """
    folder = require_text_run(run)
    require_at_least("segment_length", segment_length, 1)
    require_at_least("every", every, 1)
    with _open(source) as file, _sigterm_interrupts():
        model: Any = folder.load_model()
        after = _read_state(state, model)
        num_bytes, bits, began = 0, 0.0, time.monotonic()

        def say(what: str) -> None:
            rate = num_bytes / max(time.monotonic() - began, 1e-9)
            print(
                f"{what} {num_bytes:,} bytes, {bits / num_bytes:.4f} bits per byte, "
                f"{rate:,.0f} bytes per second",
                flush=True,
            )

        try:
            for segment in _segments(file, segment_length, every):
                costs, following = byte_costs(model, segment, after)
                cost = float(costs.sum())
                # Together: Ctrl-C must not come between a figure and its state.
                num_bytes, bits, after = num_bytes + len(segment), bits + cost, following
                if num_bytes % every == 0:
                    say("so far")
            if not num_bytes:
                raise ValueError("input must hold at least one byte; got none.")
            say("in all")
        except KeyboardInterrupt as stop:
            if not num_bytes:
                raise
            say("stopped after")
            return exit_code(stop)
        finally:
            if num_bytes:
                _write_state(state, after, model)
    return 0


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that its state is written; a second one, for
    schedulers send several, changes nothing. Python hears it in its main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        # After one SIGTERM it stays ignored: the command is on its way out.
        if signal.getsignal(signal.SIGTERM) is interrupt:
            signal.signal(signal.SIGTERM, before)


def _open(source: Path | None) -> AbstractContextManager[BinaryIO]:
    """Return the file, or standard input, which is left open."""
    if source is None and sys.stdin is None:
        raise ValueError("input must be given: standard input is closed.")
    if source is None:
        with suppress(OSError, ValueError):  # else a pause of the writer would look like the end
            os.set_blocking(sys.stdin.buffer.fileno(), True)
        return nullcontext(sys.stdin.buffer)
    try:
        return source.open("rb")
    except OSError as error:
        raise ValueError(f"input must be a file that can be read; {source}: {error}.") from error


def _segments(file: BinaryIO, length: int, every: int) -> Iterator[bytes]:
    """Yield what is there, as it comes, cut also where a line is due."""
    due = every
    while segment := file.read1(min(length, due)):  # type: ignore[attr-defined]
        due = (due - len(segment)) or every
        yield segment


def _read_state(path: Path | None, model: Any) -> ByteStreamState:
    """Return the state in the file; the start of a stream where there is no file yet."""
    start = start_of_stream(model)
    if path is None:
        return start
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"state must be a file in a folder that can be written; got {path}.")
    if not path.exists():
        return start
    weights = _fingerprint(model)
    try:
        kept, made_by = states.load(path, like=(start, weights))
    except (ValueError, TypeError) as error:
        raise ValueError(f"state must be one of this model: {error}") from error
    if not torch.equal(made_by, weights):
        raise ValueError(f"state must be one of this model: other weights made {path}.")
    for part, like in zip(states.tensors(kept), states.tensors(start), strict=True):
        if part.dtype != like.dtype:
            raise ValueError(f"state must be one of this model: {path} holds {part.dtype}.")
        if bool((part.isnan() | (part == torch.inf)).any()):  # what nothing was seen of is -inf
            raise ValueError(f"state must hold finite numbers; {path} holds NaN or infinity.")
    return kept


def _write_state(path: Path | None, state: ByteStreamState, model: Any) -> None:
    """Replace the file, whole or not at all."""
    if path is None:
        return
    with explained_saving("the state", path, then="give the command again"):
        states.save((state, _fingerprint(model)), path)


def _fingerprint(model: torch.nn.Module) -> Tensor:
    """The model's weights in 32 bytes. Runs of the same options have states of the same shapes."""
    digest = hashlib.sha256()
    for weights in model.state_dict().values():
        digest.update(weights.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return torch.tensor([list(digest.digest())], dtype=torch.uint8)

"""Stopping on request: Ctrl-C, a closed terminal, SIGTERM from whoever owns the machine."""

from __future__ import annotations

import os
import signal
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any


@dataclass(eq=False)
class StopRequest:
    """Whether someone has asked the run to stop."""

    signal: int | None = None
    """The signal that asked, SIGINT, SIGTERM or SIGHUP; None while nobody has."""


_open: list[StopRequest] = []
"""Those that are listening, the innermost last."""


def _leave_terminal() -> None:
    """Let go of a terminal that has closed: what is said from now on is lost, and no error."""
    for output in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(output).st_mode) and not os.isatty(output):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, output)
                os.close(null)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn Ctrl-C, SIGTERM and a closed terminal into a request to stop after the step.

    A second Ctrl-C raises KeyboardInterrupt at once; a second SIGTERM changes nothing, for
    schedulers send several. Blocks may be nested: a request to an inner one stops the outer one
    too, and with it what would follow, such as the next run of a study. Outside the main thread,
    where Python handles no signals, nobody asks.
    """
    request = StopRequest()

    def ask(number: int, _: object) -> None:
        if number == signal.SIGHUP:
            _leave_terminal()
        if request.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        for each in _open:
            each.signal = number

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    around = _open[-1] if _open else None
    _open.append(request)
    before: dict[int, Any] = {}
    try:
        if around is not None:  # read after the append: whoever asks from here on asks both
            request.signal = around.signal
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # Of SIGHUP `nohup` has said that it is to be ignored.
            if signal.getsignal(each) != signal.SIG_IGN or each != signal.SIGHUP:
                before[each] = signal.signal(each, ask)
        yield request
    finally:
        try:
            for number, handler in before.items():
                signal.signal(number, handler)
        finally:
            _open.remove(request)

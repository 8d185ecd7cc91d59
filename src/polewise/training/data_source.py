"""Batches, fetched in a thread of their own: a stalled source can be told from a slow one."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from itertools import islice

from polewise.tasks import Batch
from polewise.training.errors import StalledError
from polewise.training.stopping import StopRequest

_SECONDS_BETWEEN_LOOKS = 0.5


class DataSource:
    """Takes batches from an iterator, and does not wait for ever.

    Nothing is fetched ahead: the thread works only while `take` waits, so tasks are as
    deterministic as without it. It is a daemon, because what hangs in a read cannot be ended.
    """

    def __init__(self, batches: Iterator[Batch], timeout: float) -> None:
        self.timeout = timeout
        self._batches = batches
        self._wanted: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[list[Batch] | BaseException] = queue.SimpleQueue()
        threading.Thread(target=self._fetch, name="batches", daemon=True).start()

    def take(self, count: int, stop: StopRequest) -> list[Batch] | None:
        """Return the next `count` batches; None if someone asked to stop while they were due.

        Raises:
            StalledError: they did not come within `timeout` seconds.
        """
        self._wanted.put(count)
        deadline = time.monotonic() + self.timeout
        while True:
            left = deadline - time.monotonic()
            try:
                answer = self._answers.get(timeout=max(min(left, _SECONDS_BETWEEN_LOOKS), 0))
            except queue.Empty:
                if stop.signal is not None:
                    return None
                if left <= 0:
                    raise StalledError(
                        f"the data source must give a batch within {self.timeout:g} s "
                        "(data_timeout); it gave none."
                    ) from None
                continue
            if isinstance(answer, BaseException):
                raise answer
            if len(answer) < count:
                raise ValueError("the task must yield training batches without end; it ended.")
            return answer

    def close(self) -> None:
        """Let the thread end."""
        self._wanted.put(0)

    def _fetch(self) -> None:
        while count := self._wanted.get():
            try:
                self._answers.put(list(islice(self._batches, count)))
            except BaseException as error:
                self._answers.put(error)

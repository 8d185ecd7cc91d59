"""Batches, fetched in a thread of their own: a stalled source can be told from a slow one."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator

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
        self._wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Batch | BaseException] = queue.SimpleQueue()
        threading.Thread(target=self._fetch, name="batches", daemon=True).start()

    def take(self, count: int, stop: StopRequest) -> list[Batch] | None:
        """Return the next `count` batches; None if someone asked to stop while they were due.

        Raises:
            StalledError: one of them did not come within `timeout` seconds.
        """
        batches: list[Batch] = []
        while len(batches) < count:
            batch = self._next(stop)
            if batch is None:
                return None
            batches.append(batch)
        return batches

    def close(self) -> None:
        """Let the thread end."""
        self._wanted.put(False)

    def _next(self, stop: StopRequest) -> Batch | None:
        self._wanted.put(True)
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
            return answer

    def _fetch(self) -> None:
        while self._wanted.get():
            try:
                self._answers.put(next(self._batches))
            except StopIteration:
                self._answers.put(
                    ValueError("the task must yield training batches without end; it ended.")
                )
            except BaseException as error:
                self._answers.put(error)

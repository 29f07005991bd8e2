"""Threads of a recovery: some load rows, since new memory is slow to write to, one reads ahead.

What must hold: whoever adds records has verified them; when the block ends without an error all of
them are loaded; what waits keeps little of what was read alive; no thread outlives its call.
"""

import contextlib
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from monolith_kv.state import NO_FIDS, TableEntry

THREADS_MAX = 4
PENDING_BYTES_MAX = 16 << 20
AHEAD_ITEMS = 2
PUT_S = 0.05  # Until it looks again whether its reader has gone.
SMALL_BYTES = 1 << 20  # Until so much has come a thread costs more than it saves.

T = TypeVar("T")
Job = Callable[[], object]


class Loader:
    """Loads records, in any order, until its block is left.

    Notes
    -----
    No row may come twice. Nobody else may use the tables meanwhile, but to read.
    """

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._bytes = 0
        self._turn = threading.Condition()
        # All below is guarded by _turn.
        self._waiting: deque[tuple[Job, int]] = deque()
        self._pending_bytes = 0
        self._is_over = False
        self._failure: BaseException | None = None

    def add(self, entry: TableEntry, records: NDArray[np.uint8]) -> None:
        """Load row records of one table, now or soon."""
        self.do(partial(entry.core.apply, records, NO_FIDS), records.nbytes)

    def do(self, job: Job, size: int) -> None:
        """Do something now or soon that holds so many bytes of what was read."""
        self._bytes += size
        if not self._threads and self._bytes <= SMALL_BYTES:
            job()
            return
        if not self._threads:
            self._start()
        with self._turn:
            while self._pending_bytes and self._pending_bytes + size > PENDING_BYTES_MAX:
                self._turn.wait()
            self._raise()
            self._pending_bytes += size
            self._waiting.append((job, size))
            self._turn.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._turn:
            self._is_over = True
            if error is not None:
                self._waiting.clear()
            self._turn.notify_all()
        for thread in self._threads:
            thread.join()
        if error is None:
            self._raise()

    def _start(self) -> None:
        for _ in range(min(THREADS_MAX, os.cpu_count() or 1)):
            thread = threading.Thread(target=self._work, name="monolith-kv-load", daemon=True)
            thread.start()
            self._threads.append(thread)

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        while True:
            with self._turn:
                while not self._waiting and not self._is_over:
                    self._turn.wait()
                if not self._waiting:
                    return
                job, size = self._waiting.popleft()
            try:
                job()
            except BaseException as error:
                self._failure = error
            del job  # It holds what was read.
            with self._turn:
                self._pending_bytes -= size
                self._turn.notify_all()


@contextlib.contextmanager
def read_ahead(source: Iterable[T]) -> Iterator[Iterator[T]]:
    """Iterate over something in a thread, some items ahead of the caller.

    Notes
    -----
    An error comes behind the items before it, as without the thread. When the block is left the
    thread has ended, wherever it was.
    """
    items: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(AHEAD_ITEMS)
    is_over = threading.Event()

    def put(item: T | None, error: BaseException | None) -> None:
        while not is_over.is_set():
            with contextlib.suppress(queue.Full):
                items.put((item, error), timeout=PUT_S)
                return

    def work() -> None:
        try:
            for item in source:
                put(item, None)
                if is_over.is_set():
                    return
            put(None, StopIteration())
        except BaseException as error:
            put(None, error)

    def ahead() -> Iterator[T]:
        while True:
            item, error = items.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            assert item is not None
            yield item

    thread = threading.Thread(target=work, name="monolith-kv-read", daemon=True)
    thread.start()
    try:
        yield ahead()
    finally:
        is_over.set()
        thread.join()

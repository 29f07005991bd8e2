"""Load the rows of a file into their tables, on several threads: new memory is slow to write to.

What must hold: whoever adds records has verified them; when the block ends without an error all of
them are loaded; those that wait keep no more than PENDING_BYTES_MAX of what was read alive.
"""

import os
import threading
from collections import deque
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from monolith_kv.state import NO_FIDS, TableEntry

THREADS_MAX = 4
PENDING_BYTES_MAX = 16 << 20
SMALL_BYTES = 1 << 20  # Until so much has come a thread costs more than it saves.


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
        self._waiting: deque[tuple[TableEntry, NDArray[np.uint8]]] = deque()
        self._pending_bytes = 0
        self._is_over = False
        self._failure: BaseException | None = None

    def add(self, entry: TableEntry, records: NDArray[np.uint8]) -> None:
        """Load row records of one table, now or soon."""
        self._bytes += records.nbytes
        if not self._threads and self._bytes <= SMALL_BYTES:
            entry.core.apply(records, NO_FIDS)
            return
        if not self._threads:
            self._start()
        with self._turn:
            while self._pending_bytes and (
                self._pending_bytes + records.nbytes > PENDING_BYTES_MAX
            ):
                self._turn.wait()
            self._raise()
            self._pending_bytes += records.nbytes
            self._waiting.append((entry, records))
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
                entry, records = self._waiting.popleft()
            size = records.nbytes
            try:
                entry.core.apply(records, NO_FIDS)
            except BaseException as error:
                self._failure = error
            del records  # It holds what was read.
            with self._turn:
                self._pending_bytes -= size
                self._turn.notify_all()

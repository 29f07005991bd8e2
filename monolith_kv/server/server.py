"""Follow a source folder into a replica, and answer lookups from it while deltas are applied.

What must hold: a request is answered from one open replica, which a resync does not pull away from
under it; following and answering never wait for each other.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

import monolith_kv as mkv
from monolith_kv.replication import Followed, Follower
from monolith_kv.server import protocol
from monolith_kv.server.listener import Listener, Parts
from monolith_kv.server.protocol import Answer, Limits, Operation, Request, ServerError, Status

__all__ = ["Scorer", "Server"]

_log = logging.getLogger(__name__)

Scorer = Callable[[NDArray[np.float32], Mapping[str, NDArray[Any]]], NDArray[np.float32]]
"""Called with rows (n, fields, dim) and the dense weights; returns (n,) scores."""


class Server:
    """A replica that follows a source and answers over a local socket, until it is closed.

    Parameters
    ----------
    source : path
        The folder to follow: a target of ``mkv-replicate push``, or a store's own folder.
    replica_path : path
        The replica's folder; created if need be.
    address : str
        "unix:PATH", or "HOST:PORT" with a loopback host; port 0 takes a free one.
    scorer : callable, optional
        Makes predictions from rows, for `Client.score`; see `Scorer`.
    poll_interval_s : float
        How often to look at the source when it has nothing new.
    limits : Limits
        What one server accepts.
    **open_options
        For `monolith_kv.open`.

    Attributes
    ----------
    address : str
        Where it listens, the port filled in.

    Raises
    ------
    ValueError
        The address is not a local one.
    OSError, StoreLockedError
        The address is in use; the replica is.

    Examples
    --------
    >>> import tempfile, monolith_kv as mkv
    >>> from monolith_kv.server import Client
    >>> folder = tempfile.mkdtemp()
    >>> with mkv.open(f"{folder}/store") as store:
    ...     store.create_table("item", dim=2).upsert([7], np.array([[1, 2]], np.float32))
    >>> with Server(f"{folder}/store", f"{folder}/replica", "127.0.0.1:0") as server:
    ...     server.wait_for(sequence=1, timeout_s=10)
    ...     with Client(server.address) as client:
    ...         client.lookup("item", [7, 8]).values.tolist()
    [[1.0, 2.0], [0.0, 0.0]]
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        replica_path: str | os.PathLike[str],
        address: str,
        *,
        scorer: Scorer | None = None,
        poll_interval_s: float = 0.5,
        limits: Limits | None = None,
        **open_options: Any,
    ) -> None:
        self._limits = limits or Limits()
        self._scorer = scorer
        self._poll_interval_s = poll_interval_s
        self._started = time.monotonic()
        self._counts = {"requests": 0, "fids": 0, "found": 0, "refused": 0}  # Guarded by _lock.
        self._lock = threading.Lock()
        self._moved = threading.Condition()
        self._resyncs = 0  # Guarded by _moved.
        self._stop = threading.Event()
        self._follower = Follower(source, replica_path, **open_options)
        # Set under _moved; one reference, read anywhere.
        self._followed = _start(self._follower)
        try:
            self._listener = Listener(address, self._handle, self._limits)
        except BaseException:
            self._follower.close()
            raise
        self.address = self._listener.address
        self._thread = threading.Thread(target=self._follow, name="mkv-follow", daemon=True)
        self._thread.start()

    def wait_for(self, sequence: int, timeout_s: float) -> None:
        """Wait until the replica holds delta `sequence`.

        Parameters
        ----------
        sequence : int
            Of the delta.
        timeout_s : float
            How long to wait at most.

        Raises
        ------
        TimeoutError
            It did not come.
        """
        with self._moved:
            if not self._moved.wait_for(lambda: self._followed.sequence >= sequence, timeout_s):
                raise TimeoutError(
                    f"the replica stands at delta {self._followed.sequence}, expected {sequence} "
                    f"within {timeout_s} s; last error: {self._followed.error}"
                )

    def status(self) -> dict[str, Any]:
        """Return position, lag, rows and counts as a JSON object; no paths, no fids."""
        with self._moved:
            followed, resyncs = self._followed, self._resyncs
        with self._lock:
            counts = dict(self._counts)
        try:
            store = self._follower.store
            rows = {name: len(table) for name, table in store.tables.items()}
            digest = store.digest()
            dense = store.dense.version
        except mkv.Error:  # Damaged, or about to be replaced: there is nothing to read just now.
            rows, digest, dense = {}, "", 0
        return {
            "sequence": followed.sequence,
            "epoch": followed.epoch,
            "source_sequence": followed.source_sequence,
            "lag": followed.lag,
            "resyncs": resyncs,
            "error": type(followed.error).__name__ if followed.error else None,
            "rows": rows,
            "digest": digest,
            "dense_version": dense,
            "uptime_s": round(time.monotonic() - self._started, 3),
            **counts,
        }

    def close(self) -> None:
        """End the connections, stop to follow, close the replica; again: nothing."""
        self._listener.close()
        self._stop.set()
        self._thread.join()
        self._follower.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- following ---------------------------------------------------------------------------

    def _follow(self) -> None:
        self._follower.check = self._raise_if_stopped
        while not self._stop.is_set():
            try:
                followed = self._follower.poll()
            except _StoppedError:
                return
            if followed.error is not None and self._followed.error is None:
                _log.warning("following has stopped for now: %s", followed.error)
            if followed.resynced:
                _log.warning("the replica was built anew: %s", followed.resynced)
            with self._moved:
                self._followed = followed
                self._resyncs += bool(followed.resynced)
                self._moved.notify_all()
            if not followed.applied:
                self._stop.wait(self._poll_interval_s)

    def _raise_if_stopped(self) -> None:
        if self._stop.is_set():
            raise _StoppedError

    # --- answering ---------------------------------------------------------------------------

    def _handle(self, operation: int, body: bytearray) -> Parts:
        try:
            parts, fids, found = self._answer(operation, body)
        except BaseException:
            self._count(requests=1, refused=1)
            raise
        self._count(requests=1, fids=fids, found=found)
        return parts

    def _answer(self, operation: int, body: bytearray) -> tuple[Parts, int, int]:
        """Body of the reply, fids asked for, fids found."""
        if operation == Operation.STATUS:
            return [protocol.pack_json(self.status())], 0, 0
        if operation not in (Operation.LOOKUP, Operation.SCORE):
            raise ServerError(Status.UNSUPPORTED, f"there is no operation {operation}")
        request = protocol.unpack_request(body, self._limits)
        if operation == Operation.SCORE and self._scorer is None:
            raise ServerError(Status.UNSUPPORTED, "this server has no model")
        try:
            answer, found = self._read(request, operation)
        except mkv.ClosedError:
            # A resync put a new replica in its place between our two steps: that one is open.
            answer, found = self._read(request, operation)
        return protocol.pack_answer(answer), len(request.fids), found

    def _read(self, request: Request, operation: int) -> tuple[Answer, int]:
        try:
            store = self._follower.store
        except mkv.CorruptionError:
            raise ServerError(Status.NOT_READY, "the replica has nothing to read yet") from None
        # The end of the last step, not store.sequence: in the middle of one that is ahead of what
        # can be read. Taken before the rows, so they are at least as new as it says.
        followed = self._followed
        sequence, epoch = followed.sequence, followed.epoch
        try:
            table = store.table(request.table)
        except KeyError:
            status = Status.UNKNOWN_TABLE if sequence else Status.NOT_READY
            raise ServerError(status, "there is no table of that name") from None
        if (
            operation == Operation.LOOKUP
            and 4 * table.dim * request.count > self._limits.frame_bytes
        ):
            raise ServerError(Status.TOO_LARGE, "the reply would be too large; ask for fewer fids")
        found = np.empty(len(request.fids), np.bool_)
        rows = table.lookup(request.fids, found=found)
        hits = int(np.count_nonzero(found))
        if operation == Operation.LOOKUP or self._scorer is None:
            return Answer(rows, found, sequence, epoch), hits
        dense = store.dense
        if not dense:
            raise ServerError(Status.NOT_READY, "no dense weights have come yet")
        shape = (request.count, request.fields, table.dim)
        scores = self._scorer(rows.reshape(shape), dense)
        return Answer(scores, np.empty(0, np.bool_), sequence, epoch), hits

    def _count(self, **counts: int) -> None:
        with self._lock:
            for name, count in counts.items():
                self._counts[name] += count


def _start(follower: Follower) -> Followed:
    """Where the replica stands before the first step."""
    try:
        store = follower.store
    except mkv.CorruptionError:
        return Followed(0, 0, 0)
    return Followed(store.sequence, store.epoch, store.sequence)


class _StoppedError(Exception):
    """The server is being closed in the middle of a step."""

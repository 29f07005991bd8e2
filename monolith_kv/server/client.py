"""Ask a server for embeddings, scores or its status, over a local socket."""

import socket
import threading
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monolith_kv.server import protocol
from monolith_kv.server.protocol import Answer, Limits, Operation, ServerError, Status

__all__ = ["Client"]


class Client:
    """One connection to a `Server`; calls from several threads take turns.

    Parameters
    ----------
    address : str
        "unix:PATH" or "HOST:PORT", as the server was given.
    timeout_s : float
        For connecting and for each request with its reply.

    Raises
    ------
    OSError
        Nobody answers there.

    Notes
    -----
    After a TimeoutError, a ConnectionError or a reply that makes no sense the connection is closed:
    it may hold the rest of an old reply. The next call opens a new one.
    """

    def __init__(self, address: str, *, timeout_s: float = 10.0) -> None:
        self._family, self._address = protocol.parse_address(address)
        self._timeout_s = timeout_s
        self._frame_bytes_max = Limits().frame_bytes
        self._lock = threading.Lock()
        self._number = 0  # Guarded by _lock, as all below.
        self._connection: socket.socket | None = self._connect()

    def lookup(self, table: str, fids: ArrayLike) -> Answer:
        """Return the embeddings of `fids` in the replica.

        Parameters
        ----------
        table : str
            Its name.
        fids : array_like of uint64, shape (n,)
            Duplicates are allowed.

        Returns
        -------
        Answer
            values (n, dim) float32, zeros where `found` (n,) is False.

        Raises
        ------
        ServerError
            The request was refused; `status` tells why.
        """
        array = _flat(fids, 1)
        body = self._ask(Operation.LOOKUP, protocol.pack_request(table, array, 1))
        return protocol.unpack_answer(body, len(array), scores=False)

    def score(self, table: str, fids: ArrayLike) -> Answer:
        """Return the server's model's predictions for events.

        Parameters
        ----------
        table : str
            Where the fids' rows are.
        fids : array_like of uint64, shape (n, fields)
            One row for each event.

        Returns
        -------
        Answer
            values (n,) float32.

        Raises
        ------
        ServerError
            The request was refused, or the server has no model.
        """
        array = _flat(fids, 2)
        count, fields = np.shape(fids)
        body = self._ask(Operation.SCORE, protocol.pack_request(table, array, fields))
        return protocol.unpack_answer(body, count, scores=True)

    def status(self) -> dict[str, Any]:
        """Return where the replica stands: sequence, epoch, lag, rows, requests and so on."""
        return protocol.unpack_json(self._ask(Operation.STATUS, []))

    def close(self) -> None:
        """Close the connection; again: nothing."""
        with self._lock:
            self._drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _connect(self) -> socket.socket:
        connection = socket.socket(self._family, socket.SOCK_STREAM)
        try:
            connection.settimeout(self._timeout_s)
            connection.connect(self._address)
            if self._family != socket.AF_UNIX:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            connection.close()
            raise
        return connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(self, operation: Operation, parts: list[bytes | memoryview]) -> bytearray:
        with self._lock:
            if self._connection is None:
                self._connection = self._connect()
            self._number += 1
            try:
                status, body = self._exchange(self._connection, operation, parts)
            except BaseException:
                self._drop()
                raise
        if status == Status.OK:
            return body
        known = status in Status.__members__.values()
        text = body[:200].decode("ascii", "replace")
        raise ServerError(Status(status) if known else Status.FAILED, text)

    def _exchange(
        self, connection: socket.socket, operation: Operation, parts: list[bytes | memoryview]
    ) -> tuple[int, bytearray]:
        frame = protocol.pack_frame(operation, self._number, *parts)
        protocol.send_frame(connection, frame, self._timeout_s)
        header = protocol.receive_header(connection, self._timeout_s, self._timeout_s)
        if header is None:
            raise ConnectionResetError("the server closed the connection")
        status, number, length, deadline = header
        if length > self._frame_bytes_max or number not in (self._number, 0):
            raise ServerError(
                Status.FAILED, f"reply {number} of {length} bytes to request {self._number}"
            )
        return status, protocol.receive_body(connection, length, deadline)


def _flat(fids: ArrayLike, ndim: int) -> NDArray[np.uint64]:
    array = np.asarray(fids)
    if array.size == 0:
        array = array.astype(np.uint64)
    if array.ndim != ndim or array.dtype not in (np.dtype(np.uint64), np.dtype(np.int64)):
        raise TypeError(
            f"fids must be uint64 with {ndim} dimension(s), got {array.dtype} with {array.ndim}"
        )
    return np.ascontiguousarray(array).reshape(-1).view(np.uint64)

"""Accept local connections, receive requests within caps and deadlines, send what a handler says.

What must hold: nobody can take more than the limits give, by being many, large or slow; a client
that misbehaves loses its own connection and nothing else.
"""

import contextlib
import logging
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator

from monolith_kv.server import protocol
from monolith_kv.server.protocol import Limits, ServerError, Status

__all__ = ["Handler", "Listener"]

_log = logging.getLogger(__name__)

Parts = list[bytes | memoryview]
Handler = Callable[[int, bytearray], Parts]
"""Called with operation and body, from any thread; returns the reply's body or raises."""


class Listener:
    """Serves one local address with one thread for each connection.

    Parameters
    ----------
    address : str
        "unix:PATH" or "HOST:PORT" with a loopback host; port 0 takes a free one.
    handler : callable
        See `Handler`. What it raises besides ServerError is logged, and refused without details.
    limits : Limits
        What is accepted.

    Attributes
    ----------
    address : str
        Where it listens, the port filled in.

    Raises
    ------
    ValueError
        The address is not a local one.
    OSError
        It is in use.
    """

    def __init__(self, address: str, handler: Handler, limits: Limits) -> None:
        self._handler = handler
        self._limits = limits
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}  # Guarded by _lock.
        self._in_flight = 0  # Guarded by _lock.
        self._closing = threading.Event()
        family, target = protocol.parse_address(address)
        self._path: str | None = None
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            if family == socket.AF_UNIX:
                _bind_unix(self._socket, target)
                self._path = target
                self.address = address
            else:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                self._socket.bind(target)
                host, port = self._socket.getsockname()[:2]
                self.address = f"{host}:{port}"
            self._socket.listen(limits.connections)
        except BaseException:
            self._socket.close()
            raise
        self._acceptor = threading.Thread(target=self._accept, name="mkv-accept", daemon=True)
        self._acceptor.start()

    def close(self) -> None:
        """Stop to listen and end every connection; again: nothing."""
        with self._lock:
            if self._closing.is_set():
                return
            self._closing.set()
            connections = dict(self._connections)
        # shutdown() wakes a thread that waits in accept() or recv(); close() alone does not.
        for each in (self._socket, *connections):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in (self._acceptor, *connections.values()):
            thread.join(self._limits.request_s)
        self._socket.close()
        if self._path is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError as error:
                if not self._closing.is_set():
                    _log.error("accepting connections has ended: %s", error)
                return
            thread = threading.Thread(
                target=self._serve, args=(connection,), name="mkv-connection", daemon=True
            )
            with self._lock:
                full = self._closing.is_set() or len(self._connections) >= self._limits.connections
                if not full:
                    self._connections[connection] = thread
            if full:
                self._refuse(connection)
            else:
                thread.start()

    def _refuse(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            # At once or never: the acceptor must not wait for one client.
            self._reply_error(connection, 0, Status.BUSY, "too many connections", limit_s=0.05)

    def _serve(self, connection: socket.socket) -> None:
        try:
            if connection.family != socket.AF_UNIX:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while self._serve_one(connection):
                pass
        except (OSError, ServerError) as error:
            if not self._closing.is_set():
                _log.debug("a connection has ended: %s", error)
        finally:
            with self._lock:
                self._connections.pop(connection, None)
            connection.close()

    def _serve_one(self, connection: socket.socket) -> bool:
        """Answer one request; False when the connection is to be closed."""
        limits = self._limits
        try:
            header = protocol.receive_header(connection, limits.idle_s, limits.request_s)
        except ServerError as error:
            self._reply_error(connection, 0, error.status, error.text)
            return False
        if header is None:
            return False
        operation, number, length, deadline = header
        if length > limits.frame_bytes:
            # Its body is not worth reading, and without that the next frame is not found.
            text = f"a frame has at most {limits.frame_bytes} bytes, got {length}"
            self._reply_error(connection, number, Status.TOO_LARGE, text)
            return False
        with self._reserved(length) as is_free:
            if not is_free:
                self._reply_error(connection, number, Status.BUSY, "too many bytes in flight")
                return False
            body = protocol.receive_body(connection, length, deadline)
            try:
                parts = self._handler(operation, body)
            except ServerError as error:
                self._reply_error(connection, number, error.status, error.text)
                return True
            except Exception:
                _log.exception("a request has failed")
                self._reply_error(connection, number, Status.FAILED, "see the server's log")
                return True
        self._reply(connection, number, parts)
        return True

    def _reply(self, connection: socket.socket, number: int, parts: Parts) -> None:
        size = sum(len(part) for part in parts)
        if size > self._limits.frame_bytes:
            text = f"a reply has at most {self._limits.frame_bytes} bytes, this needs {size}"
            self._reply_error(connection, number, Status.TOO_LARGE, text)
            return
        with self._reserved(size) as is_free:
            if is_free:
                frame = protocol.pack_frame(Status.OK, number, *parts)
                protocol.send_frame(connection, frame, self._limits.request_s)
                return
        self._reply_error(connection, number, Status.BUSY, "too many bytes in flight")

    def _reply_error(
        self,
        connection: socket.socket,
        number: int,
        status: Status,
        text: str,
        limit_s: float | None = None,
    ) -> None:
        frame = protocol.pack_frame(status, number, text.encode("ascii", "replace"))
        protocol.send_frame(connection, frame, limit_s or self._limits.request_s)

    @contextlib.contextmanager
    def _reserved(self, size: int) -> Iterator[bool]:
        """Count `size` bytes as in flight; False, and nothing counted, where that is too many."""
        with self._lock:
            is_free = self._in_flight + size <= self._limits.bytes_in_flight
            if is_free:
                self._in_flight += size
        try:
            yield is_free
        finally:
            if is_free:
                with self._lock:
                    self._in_flight -= size


def _bind_unix(server: socket.socket, path: str) -> None:
    """Bind to a path for this user alone, over a socket that a dead process has left there."""
    if os.path.lexists(path):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(f"{path} is there and is no socket; give another path")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
            else:
                raise OSError(f"another process listens at {path}; end it or give another path")
    server.bind(path)
    # Nobody can connect before listen(), so there is no moment at which others could.
    os.chmod(path, 0o600)

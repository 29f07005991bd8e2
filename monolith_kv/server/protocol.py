"""The bytes between client and server, and the caps on them.

    frame    := magic "MKVS"  version u8  kind u8  reserved u16  number u64  length u32  body
    lookup   := name_length u8  reserved u8  fields u16  count u32  name  fids u64[count * fields]
    rows     := sequence u64  epoch u64  count u32  dim u32  float32[count * dim]  found u8[count]
    scores   := sequence u64  epoch u64  count u32  dim u32 (1)  float32[count]

All little endian. The kind of a request is an operation, that of a reply a status; a reply has its
request's number. What must hold: a length is compared with a cap, and with what its own fields say,
before anything of that size is allocated; a refusal carries neither fids nor paths; nothing that is
received is ever executed or unpickled.
"""

import ipaddress
import json
import socket
import struct
import time
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

import monolith_kv as mkv

__all__ = [
    "Answer",
    "Limits",
    "Operation",
    "Request",
    "ServerError",
    "Status",
    "parse_address",
]

MAGIC = b"MKVS"
VERSION = 1
FRAME = struct.Struct("<4sBBHQI")
LOOKUP = struct.Struct("<BBHI")
ROWS = struct.Struct("<QQII")
UNIX_PREFIX = "unix:"
UNIX_PATH_MAX = 107  # sun_path of Linux, without its closing zero.


class Operation(IntEnum):
    """What a client asks for. On the wire: never renumber."""

    STATUS = 1
    LOOKUP = 2
    SCORE = 3


class Status(IntEnum):
    """How it went. On the wire: never renumber."""

    OK = 0
    BAD_REQUEST = 1
    NOT_READY = 2
    UNKNOWN_TABLE = 3
    TOO_LARGE = 4
    BUSY = 5
    UNSUPPORTED = 6
    FAILED = 7


class ServerError(mkv.Error):
    """A request was refused, or the other side does not speak this protocol.

    Attributes
    ----------
    status : Status
        Why.
    """

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(f"{status.name.lower().replace('_', ' ')}: {message}")
        self.status = status
        self.text = message


@dataclass(frozen=True)
class Limits:
    """What one server accepts.

    Parameters
    ----------
    frame_bytes : int
        Of one request or reply, without its header.
    fids : int
        Of one request.
    connections : int
        Open at once; one more is closed at once.
    bytes_in_flight : int
        Of all requests and replies at once; beyond it a request is refused as busy.
    request_s : float
        From a request's first byte to its last, and for sending the reply.
    idle_s : float
        A connection that asks nothing for so long is closed.

    Examples
    --------
    >>> Limits(connections=4).fids
    1048576
    """

    frame_bytes: int = 64 << 20
    fids: int = 1 << 20
    connections: int = 64
    bytes_in_flight: int = 256 << 20
    request_s: float = 10.0
    idle_s: float = 300.0


@dataclass(frozen=True)
class Answer:
    """Rows or scores, and the state of the replica that they came from.

    Parameters
    ----------
    values : ndarray of float32
        (n, dim) rows or (n,) scores.
    found : ndarray of bool, shape (n,)
        Which fids had a row; empty for scores.
    sequence, epoch : int
        The values are at least as new as this delta.
    """

    values: NDArray[np.float32]
    found: NDArray[np.bool_]
    sequence: int
    epoch: int


@dataclass(frozen=True)
class Request:
    """A lookup or a score request, checked.

    Parameters
    ----------
    table : str
        Its name, as sent.
    fids : ndarray of uint64, shape (count * fields,)
        Borrows the frame.
    count, fields : int
        `fields` is 1 for a lookup.
    """

    table: str
    fids: NDArray[np.uint64]
    count: int
    fields: int


def parse_address(address: str) -> tuple[socket.AddressFamily, Any]:
    """Return family and address for a socket; local ones only.

    Parameters
    ----------
    address : str
        "unix:PATH", or "HOST:PORT" with a loopback host.

    Raises
    ------
    ValueError
        It has another form, or other machines could reach it: this protocol has neither
        encryption nor tokens.

    Examples
    --------
    >>> parse_address("127.0.0.1:7070")[1]
    ('127.0.0.1', 7070)
    """
    if address.startswith(UNIX_PREFIX):
        path = address[len(UNIX_PREFIX) :]
        if not 0 < len(path.encode()) <= UNIX_PATH_MAX:
            raise ValueError(f"a socket's path must be 1..{UNIX_PATH_MAX} bytes, got {path!r}")
        return socket.AF_UNIX, path
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f'address must be "unix:PATH" or "HOST:PORT", got {address!r}')
    try:
        ip = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host.strip("[]"))
    except ValueError:
        raise ValueError(f"host must be a loopback address, got {host!r}") from None
    if not ip.is_loopback:
        raise ValueError(
            f"host must be a loopback address, got {host}: the protocol has no encryption; put a "
            "proxy with TLS before it to serve other machines"
        )
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    return family, (str(ip), int(port))


# --- frames ----------------------------------------------------------------------------------


def pack_frame(kind: int, number: int, *parts: bytes | memoryview) -> list[bytes | memoryview]:
    """Return a frame as buffers to send one after the other."""
    length = sum(len(part) for part in parts)
    return [FRAME.pack(MAGIC, VERSION, kind, 0, number, length), *parts]


def send_frame(connection: socket.socket, frame: list[bytes | memoryview], limit_s: float) -> None:
    """Send all of a frame within `limit_s`; TimeoutError otherwise."""
    connection.settimeout(limit_s)
    # Small frames in one piece: two writes would wait for each other's acknowledgement.
    if sum(len(part) for part in frame) <= 1 << 16:
        connection.sendall(b"".join(frame))
        return
    for part in frame:
        connection.sendall(part)


def receive_header(
    connection: socket.socket, idle_s: float, limit_s: float
) -> tuple[int, int, int, float] | None:
    """Wait for a frame and return kind, number, length and deadline; None at the end of all."""
    connection.settimeout(idle_s)
    first = connection.recv(FRAME.size)
    if not first:
        return None
    deadline = time.monotonic() + limit_s
    header = bytearray(FRAME.size)
    header[: len(first)] = first
    if len(first) < FRAME.size:
        _receive_into(connection, memoryview(header)[len(first) :], deadline)
    magic, version, kind, _, number, length = FRAME.unpack(header)
    if magic != MAGIC or version != VERSION:
        raise ServerError(
            Status.BAD_REQUEST,
            f"expected {MAGIC.decode()} version {VERSION}, got {bytes(magic)!r} version {version}",
        )
    return kind, number, length, deadline


def receive_body(connection: socket.socket, length: int, deadline: float) -> bytearray:
    """Receive a body whose length was compared with a cap; TimeoutError past the deadline."""
    body = bytearray(length)
    _receive_into(connection, memoryview(body), deadline)
    return body


def _receive_into(connection: socket.socket, view: memoryview, deadline: float) -> None:
    done = 0
    while done < len(view):
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the deadline passed in the middle of a frame")
        connection.settimeout(left_s)
        received = connection.recv_into(view[done:])
        if not received:
            raise ConnectionResetError("the other side left in the middle of a frame")
        done += received


# --- bodies ----------------------------------------------------------------------------------


def pack_request(table: str, fids: NDArray[np.uint64], fields: int) -> list[bytes | memoryview]:
    """Return the body of a lookup or score request."""
    name = table.encode("ascii")
    head = LOOKUP.pack(len(name), 0, fields, len(fids) // fields) + name
    return [head, np.ascontiguousarray(fids, "<u8").view(np.uint8).data]


def unpack_request(body: bytearray, limits: Limits) -> Request:
    """Check and return a request; ServerError where its fields do not fit its length."""
    if len(body) < LOOKUP.size:
        raise ServerError(Status.BAD_REQUEST, f"{len(body)} bytes are too short for a request")
    name_length, _, fields, count = LOOKUP.unpack_from(body)
    fids = count * fields
    if fids > limits.fids:
        raise ServerError(Status.TOO_LARGE, f"at most {limits.fids} fids a request, got {fids}")
    start = LOOKUP.size + name_length
    if fields < 1 or len(body) != start + 8 * fids:
        raise ServerError(Status.BAD_REQUEST, "the length does not fit the number of fids")
    try:
        name = body[LOOKUP.size : start].decode("ascii")
    except UnicodeDecodeError:
        raise ServerError(Status.BAD_REQUEST, "the table's name is not ASCII") from None
    # A copy where the name leaves the fids unaligned; NumPy reads them in place otherwise.
    array = np.frombuffer(body, "<u8", fids, start).astype(np.uint64, copy=bool(start % 8))
    return Request(name, array, count, fields)


def pack_answer(answer: Answer) -> list[bytes | memoryview]:
    """Return the body of a reply with rows or scores."""
    values = np.ascontiguousarray(answer.values, "<f4")
    dim = values.shape[1] if values.ndim == 2 else 1
    head = ROWS.pack(answer.sequence, answer.epoch, len(values), dim)
    found = np.ascontiguousarray(answer.found).view(np.uint8).data
    return [head, values.reshape(-1).view(np.uint8).data, found]


def unpack_answer(body: bytearray, count: int, *, scores: bool) -> Answer:
    """Check and return a reply to a request for `count` rows or scores."""
    if len(body) < ROWS.size:
        raise ServerError(Status.FAILED, f"{len(body)} bytes are too short for a reply")
    sequence, epoch, got, dim = ROWS.unpack_from(body)
    expected = ROWS.size + 4 * got * dim + (0 if scores else got)
    if got != count or len(body) != expected or (scores and dim != 1):
        raise ServerError(Status.FAILED, f"the reply must have {count} rows, got {got}")
    values = np.frombuffer(body, "<f4", got * dim, ROWS.size).astype(np.float32, copy=False)
    found = np.frombuffer(body, np.bool_, 0 if scores else got, ROWS.size + 4 * got * dim)
    return Answer(values if scores else values.reshape(got, dim), found, sequence, epoch)


def pack_json(value: dict[str, Any]) -> bytes:
    """Return a JSON object as a body."""
    return json.dumps(value, separators=(",", ":")).encode()


def unpack_json(body: bytearray) -> dict[str, Any]:
    """Return the JSON object in a body."""
    try:
        value = json.loads(body)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ServerError(Status.FAILED, "the reply must be a JSON object")
    return value

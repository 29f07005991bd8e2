"""The server: answers while it follows, keeps its caps, gives nothing away."""

import os
import socket
import stat
import struct
import threading
import time

import numpy as np
import pytest

import monolith_kv as mkv
from monolith_kv.server import Client, Limits, Server, ServerError, Status, protocol

TABLE = "item"
IDS = np.arange(1, 101, dtype=np.uint64)


def rows_of(ids, value=1.0):
    return np.outer(ids.astype(np.float32), [1, 2, 3, 4]).astype(np.float32) * np.float32(value)


def sum_scorer(rows, dense):
    return rows.sum(axis=(1, 2)) * dense["scale"][0]


@pytest.fixture
def store(store_dir):
    with mkv.open(store_dir, delta_interval=None) as store:
        store.create_table(TABLE, dim=4).upsert(IDS, rows_of(IDS))
        store.dense.publish({"scale": np.array([2.0], np.float32)})
        store.seal()
        yield store


@pytest.fixture
def address(store_dir):
    return f"unix:{store_dir.parent}/sock"


@pytest.fixture
def server(store, store_dir, address):
    with Server(
        store_dir,
        store_dir.parent / "replica",
        address,
        scorer=sum_scorer,
        poll_interval_s=0.01,
        limits=Limits(fids=1000, connections=4, frame_bytes=1 << 16, request_s=0.5),
    ) as server:
        server.wait_for(1, timeout_s=20)
        yield server


@pytest.fixture
def client(server):
    with Client(server.address, timeout_s=5) as client:
        yield client


def raw(server):
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(5)
    connection.connect(server.address.removeprefix("unix:"))
    return connection


def reply_of(connection):
    """Status, number and body of the next frame; None at the end."""
    header = protocol.receive_header(connection, 5, 5)
    if header is None:
        return None
    status, number, length, deadline = header
    return status, number, bytes(protocol.receive_body(connection, length, deadline))


# --- answers -----------------------------------------------------------------------------------


def test_lookup_gives_the_rows_and_which_are_there(client):
    answer = client.lookup(TABLE, np.array([5, 999, 5], np.uint64))
    np.testing.assert_array_equal(answer.values, [rows_of(IDS)[4], np.zeros(4), rows_of(IDS)[4]])
    assert answer.found.tolist() == [True, False, True]
    assert (answer.sequence, answer.epoch) == (1, 1)


def test_lookup_of_no_ids_gives_no_rows(client):
    assert client.lookup(TABLE, []).values.shape == (0, 4)


def test_signed_ids_are_the_same_64_bits(client, store):
    store.table(TABLE).upsert(np.array([-1], np.int64), np.ones((1, 4), np.float32))
    delta = store.seal()
    wait_until(lambda: client.status()["sequence"] == delta.sequence)
    assert client.lookup(TABLE, np.array([-1], np.int64)).found.all()


def test_score_uses_rows_and_dense_weights(client):
    answer = client.score(TABLE, np.array([[1, 2], [3, 999]], np.uint64))
    assert answer.values.tolist() == [2 * (10 + 20), 2 * 30]


def test_status_tells_position_and_counts_but_no_paths(client, store, store_dir):
    client.lookup(TABLE, IDS[:3])
    status = client.status()
    assert (status["sequence"], status["lag"], status["rows"]) == (1, 0, {TABLE: 100})
    assert (status["fids"], status["found"], status["error"]) == (3, 3, None)
    assert status["digest"] == store.digest()
    assert str(store_dir.parent) not in str(status)


def test_it_serves_what_is_sealed_later(client, store):
    store.table(TABLE).upsert(IDS, rows_of(IDS, 7.0))
    delta = store.seal()
    wait_until(lambda: client.status()["sequence"] == delta.sequence)
    np.testing.assert_array_equal(client.lookup(TABLE, IDS).values, rows_of(IDS, 7.0))


def test_rows_are_never_torn_while_deltas_are_applied(server, store):
    stop = threading.Event()
    torn = []

    def read():
        with Client(server.address) as client:
            while not stop.is_set():
                values = client.lookup(TABLE, IDS).values
                factor = values[:, :1] / IDS[:, None]
                if not np.allclose(values, rows_of(IDS) * factor):
                    torn.append(values)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for value in range(2, 30):
        store.table(TABLE).upsert(IDS, rows_of(IDS, value))
        store.seal()
    server.wait_for(store.sequence, timeout_s=20)
    stop.set()
    for reader in readers:
        reader.join()
    assert torn == []


def test_a_client_connects_again_after_the_server_has(store, store_dir, address):
    replica = store_dir.parent / "replica"
    server = Server(store_dir, replica, address)
    server.wait_for(1, timeout_s=20)
    with Client(address) as client:
        assert client.lookup(TABLE, IDS).found.all()
        server.close()
        with pytest.raises(OSError):
            client.lookup(TABLE, IDS)
        with Server(store_dir, replica, address):
            assert client.lookup(TABLE, IDS).found.all()


def test_a_server_that_comes_back_knows_where_its_replica_stands(store, store_dir, address):
    replica = store_dir.parent / "replica"
    with Server(store_dir, replica, address) as server:
        server.wait_for(1, timeout_s=20)
    gone = store_dir.parent / "gone"  # The source cannot be reached any more.
    with Server(gone, replica, address) as server, Client(address) as client:
        answer = client.lookup(TABLE, IDS)
        assert answer.found.all()
        assert answer.sequence == 1
        wait_until(lambda: client.status()["error"] is not None)


def test_loopback_serves_as_a_unix_socket_does(store, store_dir):
    with Server(store_dir, store_dir.parent / "replica", "127.0.0.1:0") as server:
        server.wait_for(1, timeout_s=20)
        with Client(server.address) as client:
            assert client.lookup(TABLE, IDS).found.all()


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0:7070", "192.168.1.1:7070", "example.org:7070", "[::]:7070", ":7070", "127.0.0.1",
     "127.0.0.1:70700", "unix:", "unix:" + "x" * 200, "/tmp/sock"],
)  # fmt: skip
def test_addresses_that_others_could_reach_are_refused(address, store_dir):
    with pytest.raises(ValueError):
        Server(store_dir, store_dir.parent / "replica", address)
    with pytest.raises(ValueError):
        Client(address)


def refusal(call):
    with pytest.raises(ServerError) as caught:
        call()
    return caught.value.status


def test_an_unknown_table_is_refused_without_its_name(client):
    with pytest.raises(ServerError) as caught:
        client.lookup("secret", IDS)
    assert caught.value.status == Status.UNKNOWN_TABLE
    assert "secret" not in str(caught.value)
    assert client.lookup(TABLE, IDS).found.all()  # The connection lives on.


def test_before_the_first_delta_it_says_not_ready(store_dir, address):
    with (
        mkv.open(store_dir),
        Server(store_dir, store_dir.parent / "replica", address),
        Client(address) as client,
    ):
        assert refusal(lambda: client.lookup(TABLE, IDS)) == Status.NOT_READY


def test_too_many_fids_are_refused(client):
    ids = np.arange(1001, dtype=np.uint64)
    assert refusal(lambda: client.lookup(TABLE, ids)) == Status.TOO_LARGE
    assert client.lookup(TABLE, IDS).found.all()


def test_a_reply_that_would_be_too_large_is_refused(store, store_dir, address):
    replica = store_dir.parent / "replica"
    with Server(store_dir, replica, address, limits=Limits(frame_bytes=1000)) as server:
        server.wait_for(1, timeout_s=20)
        with Client(address) as client:
            assert refusal(lambda: client.lookup(TABLE, IDS)) == Status.TOO_LARGE


def test_a_server_without_a_model_does_not_score(store, store_dir, address):
    with Server(store_dir, store_dir.parent / "replica", address) as server:
        server.wait_for(1, timeout_s=20)
        with Client(address) as client:
            ids = IDS.reshape(50, 2)
            assert refusal(lambda: client.score(TABLE, ids)) == Status.UNSUPPORTED


@pytest.mark.parametrize("ids", [np.ones(3), np.ones((2, 2), np.uint64), np.ones(3, np.int32)])
def test_ids_of_another_kind_are_refused_before_they_are_sent(client, ids):
    with pytest.raises(TypeError, match="fids must be uint64"):
        client.lookup(TABLE, ids)


# --- hostile and broken clients ----------------------------------------------------------------


def frame(kind, body, length=None):
    length = len(body) if length is None else length
    return protocol.FRAME.pack(b"MKVS", 1, kind, 0, 9, length) + body


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n" + b" " * 9, Status.BAD_REQUEST),
        (frame(2, b""), Status.BAD_REQUEST),
        (frame(2, struct.pack("<BBHI", 200, 0, 1, 1)), Status.BAD_REQUEST),
        (frame(2, struct.pack("<BBHI", 4, 0, 0, 1) + b"item" + bytes(8)), Status.BAD_REQUEST),
        (frame(2, struct.pack("<BBHI", 4, 0, 1, 2) + b"item" + bytes(8)), Status.BAD_REQUEST),
        (frame(2, struct.pack("<BBHI", 1, 0, 1, 0) + b"\xff"), Status.BAD_REQUEST),
        (frame(2, struct.pack("<BBHI", 4, 0, 65535, 2**32 - 1) + b"item"), Status.TOO_LARGE),
        (frame(2, b"", length=2**32 - 1), Status.TOO_LARGE),
        (frame(99, b""), Status.UNSUPPORTED),
    ],
)
def test_nonsense_is_refused(server, client, sent, status):
    with raw(server) as connection:
        connection.sendall(sent)
        got, _, body = reply_of(connection)
    assert got == status
    assert len(body) < 200
    assert client.lookup(TABLE, IDS).found.all()


def test_random_bytes_hurt_nobody(server, client, rng):
    for _ in range(50):
        body = rng.bytes(int(rng.integers(0, 60)))
        data = frame(int(rng.integers(0, 256)), body)
        # Refused as busy while the server has yet to see that the last one hung up: again.
        wait_until(lambda data=data: is_answered(server, data))
    assert client.lookup(TABLE, IDS).found.all()


def test_a_slow_request_is_cut_off(server, client):
    with raw(server) as connection:
        connection.sendall(frame(2, bytes(8), length=100))
        begun = time.monotonic()
        assert connection.recv(1) == b""
        assert time.monotonic() - begun < 4
    assert client.lookup(TABLE, IDS).found.all()


def test_one_connection_too_many_is_refused_as_busy(server):
    connections = [raw(server) for _ in range(4)]
    try:
        for connection in connections:  # All four are being served.
            connection.sendall(frame(1, b""))
            assert reply_of(connection)[0] == Status.OK
        with raw(server) as fifth:
            assert reply_of(fifth)[0] == Status.BUSY
    finally:
        for connection in connections:
            connection.close()
    wait_until(lambda: can_ask(server))


def test_bytes_in_flight_are_capped(store, store_dir, address):
    limits = Limits(bytes_in_flight=64)
    with Server(store_dir, store_dir.parent / "replica", address, limits=limits) as server:
        with Client(address) as client:
            assert refusal(lambda: client.lookup(TABLE, IDS)) == Status.BUSY
        assert server.status()["requests"] == 0


def test_what_fails_inside_is_not_told_outside(store, store_dir, address, caplog):
    def broken(rows, dense):
        raise RuntimeError("the secret path /etc/shadow")

    replica = store_dir.parent / "replica"
    with Server(store_dir, replica, address, scorer=broken) as server:
        server.wait_for(1, timeout_s=20)
        with Client(address) as client:
            with pytest.raises(ServerError) as caught:
                client.score(TABLE, IDS.reshape(50, 2))
            assert client.lookup(TABLE, IDS).found.all()
    assert caught.value.status == Status.FAILED
    assert "secret" not in str(caught.value)
    assert "/etc/shadow" in caplog.text


# --- the socket --------------------------------------------------------------------------------


def test_the_socket_is_for_this_user_alone_and_goes_with_the_server(store, store_dir, address):
    path = address.removeprefix("unix:")
    with Server(store_dir, store_dir.parent / "replica", address):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert not os.path.exists(path)


def test_a_socket_left_by_a_dead_process_is_taken_over(store, store_dir, address):
    left = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    left.bind(address.removeprefix("unix:"))
    left.close()
    with Server(store_dir, store_dir.parent / "replica", address) as server:
        assert server.status()["requests"] == 0


def test_a_socket_in_use_is_not_taken_over(server, store_dir, address):
    with pytest.raises(OSError, match="another process listens"):
        Server(store_dir, store_dir.parent / "other", address)


def test_a_file_in_the_socket_s_place_stays(store, store_dir, address):
    path = address.removeprefix("unix:")
    with open(path, "w") as file:
        file.write("mine")
    with pytest.raises(FileExistsError):
        Server(store_dir, store_dir.parent / "replica", address)
    with open(path) as file:
        assert file.read() == "mine"


def test_closing_twice_is_nothing(store, store_dir, address):
    server = Server(store_dir, store_dir.parent / "replica", address)
    server.close()
    server.close()


def is_answered(server, data):
    """Whether the server, when it is not busy, says something to this."""
    try:
        with raw(server) as connection:
            connection.sendall(data)
            reply = reply_of(connection)
    except (BrokenPipeError, ConnectionResetError):
        return False
    assert reply is not None
    return reply[0] != Status.BUSY


def can_ask(server):
    try:
        with Client(server.address) as client:
            return bool(client.status())
    except (OSError, ServerError):
        return False


def wait_until(holds, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come to hold"
        time.sleep(0.005)

"""Redis over loopback: MGET and MSET of whole batches through redis-py with hiredis.

The server is the one on the PATH, on a free port of 127.0.0.1, with neither snapshots nor a log by
itself. It is this worker's child: ended with it, its memory counted as the contender's.
"""

import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import redis
from monolith_kv_tools.bench.compare.contender import resident_bytes
from monolith_kv_tools.bench.compare.contenders.stores import ByteStore, keys_of, rows_of, values_of
from monolith_kv_tools.bench.compare.work import Ids, Rows, Scope

HOST = "127.0.0.1"
START_S = 120.0
POLL_S = 0.002
SAVED = "saved.rdb"


class RedisServer(ByteStore):
    """Keys of 8 bytes for rows, with an "a" before them for accumulators."""

    _server: subprocess.Popen[bytes] | None = None

    def version(self) -> str:
        info: dict[str, Any] = self._client.info("server")
        return f"Redis {info['redis_version']}, redis-py {redis.__version__} with hiredis"

    def create(self, folder: Path, scope: Scope) -> None:
        self.dim = scope.dim
        self._start(folder)

    def read_rows(self, ids: Ids) -> Rows:
        return rows_of(self._client.mget(keys_of(ids)), self.dim)

    def read_both(self, ids: Ids) -> tuple[Rows, Rows]:
        keys = keys_of(ids)
        with self._client.pipeline(transaction=False) as pipeline:
            pipeline.mget(keys)
            pipeline.mget([b"a" + key for key in keys])
            rows, accumulators = pipeline.execute()
        return rows_of(rows, self.dim), rows_of(accumulators, self.dim)

    def write(self, ids: Ids, rows: Rows, accumulators: Rows | None) -> None:
        keys = keys_of(ids)
        values = dict(zip(keys, values_of(rows), strict=True))
        if accumulators is not None:
            state = zip(keys, values_of(accumulators), strict=True)
            values |= {b"a" + key: value for key, value in state}
        self._client.mset(values)

    def save(self, folder: Path) -> Path:
        # Where it goes is fixed when a server starts: a running one may not be told.
        self._client.save()
        return self._folder / SAVED

    def load(self, path: Path) -> None:
        self._start(path.parent)

    def close(self) -> None:
        if self._server is not None:
            self._client.close()
            self._server.terminate()
            self._server.wait()
            self._server = None

    def resident_bytes(self) -> int:
        return 0 if self._server is None else resident_bytes(self._server.pid)

    def _start(self, folder: Path) -> None:
        """Start a server that reads and writes its file in `folder`; wait until it answers."""
        self._folder = folder
        port = _free_port()
        options = {"bind": HOST, "port": port, "dir": folder, "dbfilename": SAVED}
        options |= {"save": "", "appendonly": "no", "logfile": folder / "redis.log"}
        command = ["redis-server"]
        for name, value in options.items():
            command += [f"--{name}", str(value)]
        self._server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        self._client: Any = redis.Redis(HOST, port)
        until = time.monotonic() + START_S
        while True:
            try:
                self._client.ping()
                return
            except (redis.ConnectionError, redis.BusyLoadingError):
                if self._server.poll() is not None or time.monotonic() > until:
                    log = folder / "redis.log"
                    said = log.read_text()[-300:] if log.is_file() else "nothing"
                    raise RuntimeError(f"redis-server does not answer; its log: {said}") from None
                time.sleep(POLL_S)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port

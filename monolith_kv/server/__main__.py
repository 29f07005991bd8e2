"""Serve a replica: python -m monolith_kv.server SOURCE REPLICA --address unix:/run/mkv.sock."""

import argparse
import logging
import signal
import sys
import threading

import monolith_kv as mkv
from monolith_kv.server.server import Server


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C; 0 then, 4 if it could not start."""
    parser = argparse.ArgumentParser(prog="python -m monolith_kv.server", description=__doc__)
    parser.add_argument("source", help="folder to follow: a target of mkv-replicate push")
    parser.add_argument("replica", help="the replica's folder; created if need be")
    parser.add_argument("--address", default="127.0.0.1:7070", help="unix:PATH or loopback:PORT")
    parser.add_argument("--memory-limit", help='of the replica, as "8GiB"')
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        with Server(
            options.source, options.replica, options.address, memory_limit=options.memory_limit
        ) as server:
            print(f"serving {options.replica} at {server.address}", flush=True)
            stop.wait()
    except (mkv.Error, OSError, ValueError) as error:
        print(f"cannot serve: {error}", file=sys.stderr)
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())

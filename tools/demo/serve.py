"""The demo's serving process: follow the target, answer lookups, score with the model."""

import argparse
import signal
import threading

from monolith_kv_tools.demo.setting import MODEL, Paths

from monolith_kv.server import Server

POLL_S = 0.03  # The stream runs thousands of times faster than it happened; so does following.


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("root")
    paths = Paths(parser.parse_args().root)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with Server(
        paths.target, paths.replica, paths.address, scorer=MODEL.score, poll_interval_s=POLL_S
    ):
        print("serving", flush=True)
        stop.wait()


if __name__ == "__main__":
    main()

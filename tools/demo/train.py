"""The demo's trainer process: each batch is scored by the serving process, then trained on.

It prints one JSON object a line: "open" once, "progress" now and then, "end" at the end.
"""

import argparse
import json
import time
import warnings
from typing import Any

import numpy as np
from monolith_kv_tools.demo.setting import TABLE, Paths, open_trainer

import monolith_kv as mkv
from monolith_kv.server import Client, ServerError, Status
from monolith_kv.trainer import EventClock, Events, OnlineTrainer, ProgressiveAuc

REPORT_S = 0.1
WAIT_S = 30.0  # For the serving process to come up, or to catch up.


class Scored:
    """Predictions of the serving process, made before the trainer has seen the events.

    The stream runs as fast as it can be trained on. So that the replica is never more than
    `lag_max` deltas behind, as it would not be in real time, the stream waits for it.
    """

    def __init__(self, address: str, events: Events, lag_max: int, auc: ProgressiveAuc) -> None:
        self.events = events
        self.lag_max = lag_max
        self.auc = auc
        self.lag = 0
        self.lag_seen_max = 0
        self.lag_s = 0.0
        self.waited_s = 0.0
        self._sealed_at: dict[int, float] = {}
        self._client = connect(address)

    def note_seal(self, sequence: int) -> None:
        """Remember when a delta was sealed, by the wall."""
        self._sealed_at[sequence] = time.monotonic()

    def score(self, sequence: int, first: int, last: int) -> None:
        """Have events scored by a replica that follows a store at `sequence`."""
        begun = time.monotonic()
        while True:
            scores, served = self._ask(first, last)
            self.lag = sequence - served
            waited_s = time.monotonic() - begun
            if self.lag <= self.lag_max:
                break
            if waited_s > WAIT_S:
                raise TimeoutError(
                    f"the replica stays {self.lag} deltas behind, expected at most {self.lag_max}"
                )
            time.sleep(0.005)
        self.waited_s += waited_s
        self.lag_seen_max = max(self.lag_seen_max, self.lag)
        oldest = self._sealed_at.get(served + 1)
        self.lag_s = 0.0 if oldest is None else time.monotonic() - oldest
        for old in [key for key in self._sealed_at if key <= served]:
            del self._sealed_at[old]
        self.auc.update(self.events.labels[first:last], scores)

    def _ask(self, first: int, last: int) -> tuple[np.ndarray[Any, Any], int]:
        try:
            answer = self._client.score(TABLE, self.events.fids[first:last])
        except ServerError as error:
            if error.status != Status.NOT_READY:
                raise
            return np.full(last - first, 0.5, np.float32), 0  # Nothing has been served yet.
        return answer.values, answer.sequence


def connect(address: str) -> Client:
    """Connect to the serving process, which may still be starting."""
    begun = time.monotonic()
    while True:
        try:
            return Client(address)
        except OSError:
            if time.monotonic() - begun > WAIT_S:
                raise
            time.sleep(0.02)


def report(event: str, **values: Any) -> None:
    """Print one line for the process that has started this one."""
    print(json.dumps({"event": event, **values}), flush=True)


def state_of(trainer: OnlineTrainer) -> dict[str, Any]:
    """Return where trainer and store stand."""
    store = trainer.store
    gate = store.stats()["tables"][TABLE]["gate"]
    return {
        "position": trainer.position,
        "sealed": store.cursor["position"],
        "rows": len(trainer.table),
        "sequence": store.sequence,
        "epoch": store.epoch,
        "admitted": gate["admitted"],
        "rejected": gate["rejected"],
    }


def stream(trainer: OnlineTrainer, events: Events, scored: Scored) -> None:
    """Train to the end of the stream, and say how it goes."""
    expired = delta_bytes = 0
    reported = 0.0

    def before(first: int, last: int) -> None:
        scored.score(trainer.store.sequence, first, last)

    for step in trainer.run(events, before=before):
        expired += step.expired
        if step.delta is not None:
            scored.note_seal(step.delta.sequence)
            delta_bytes = step.delta.bytes
        is_last = step.stop == len(events)
        if is_last or time.monotonic() - reported >= REPORT_S:
            reported = time.monotonic()
            report(
                "progress",
                **state_of(trainer),
                seconds=int(events.seconds[step.stop - 1]),
                expired=expired,
                delta_bytes=delta_bytes,
                lag=scored.lag,
                lag_max=scored.lag_seen_max,
                lag_s=round(scored.lag_s, 3),
                waited_s=round(scored.waited_s, 2),
                auc=scored.auc.value,
            )


def main() -> None:
    """Open or reopen the store, and go on from its cursor."""
    parser = argparse.ArgumentParser()
    parser.add_argument("root")
    parser.add_argument("--seal-every-s", type=int, required=True)
    parser.add_argument("--lag-max", type=int, required=True)
    options = parser.parse_args()
    paths = Paths(options.root)
    events = Events.load(paths.events)
    clock = EventClock(float(events.seconds[0]))
    begun = time.monotonic()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", mkv.DataLossWarning)
        trainer = open_trainer(paths.store, clock, options.seal_every_s)
    losses = [str(w.message) for w in caught if issubclass(w.category, mkv.DataLossWarning)]
    with trainer.store as store:
        if store.sequence == 0:
            # The table's schema and first dense weights: with them the replica can answer.
            store.dense.publish(trainer.weights.arrays(0))
            store.seal(cursor={"position": 0, "seconds": int(events.seconds[0])})
        report(
            "open",
            **state_of(trainer),
            cursor=dict(store.cursor),
            digest=store.digest(),
            losses=losses,
            lost=store.stats()["lost"],
            opened_s=round(time.monotonic() - begun, 3),
        )
        scored = Scored(paths.address, events, options.lag_max, ProgressiveAuc())
        stream(trainer, events, scored)
        report("end", **state_of(trainer), digest=store.digest(), cursor=dict(store.cursor))


if __name__ == "__main__":
    main()

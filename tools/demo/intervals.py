"""How much freshness is worth: AUC of serving replicas that are brought up to date less often.

One trainer runs through the whole stream without a stop. Each replica is fed with its deltas by
`apply`, at its own interval, and scores every batch before it is trained on. All of them know the
first part of the stream, the warm-up; what is compared is what comes after.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from monolith_kv_tools.demo.data import DAY_S
from monolith_kv_tools.demo.setting import MODEL, TABLE, open_trainer
from numpy.typing import NDArray

import monolith_kv as mkv
from monolith_kv.trainer import EventClock, Events, auc

HOUR_S = 3600
NEVER_S = 0  # Only the warm-up.
CHECKPOINT_DELTAS = 48
INTERVALS_S = (HOUR_S, 6 * HOUR_S, DAY_S, 7 * DAY_S, NEVER_S)


@dataclass(frozen=True)
class Compared:
    """What the comparison found.

    Parameters
    ----------
    aucs : dict of str to float
        By the name of the interval, from the freshest to the stalest.
    events : int
        Scored after the warm-up.
    digest, rows
        Of the trainer's store at the end.
    """

    aucs: dict[str, float]
    events: int
    digest: str
    rows: int


class Served:
    """One replica and what it said about each event."""

    def __init__(self, path: str, interval_s: int, count: int, clock: EventClock) -> None:
        self.interval_s = interval_s
        self.store = mkv.open(path, "replica", clock=clock, delta_retention="1h")
        self.scores = np.full(count, 0.5, np.float32)
        self._waiting: list[mkv.Delta] = []
        self._since_checkpoint = 0

    def offer(self, delta: mkv.Delta, border_s: float, *, is_warm_up: bool) -> None:
        """Take a delta that was sealed at `border_s`, now or with others when it is time."""
        self._waiting.append(delta)
        due = self.interval_s != NEVER_S and border_s % self.interval_s == 0
        if is_warm_up or due:
            for waiting in self._waiting:
                self.store.apply(waiting)
            self._since_checkpoint += len(self._waiting)
            self._waiting.clear()
        if self._since_checkpoint >= CHECKPOINT_DELTAS:
            # It retires the deltas that it covers: naming all of them costs time at each step.
            self.store.snapshot()
            self._since_checkpoint = 0

    def score(self, events: Events, first: int, last: int) -> None:
        """Score a batch with what this replica holds."""
        fids = events.fids[first:last]
        rows = self.store.table(TABLE).lookup(fids.reshape(-1))
        shape = (*fids.shape, MODEL.row_dim)
        self.scores[first:last] = MODEL.score(rows.reshape(shape), self.store.dense)


def compare(
    events: Events,
    folder: str,
    seal_every_s: int,
    progress: Callable[[int, int], None],
) -> Compared:
    """Run through the stream once and score it with replicas of every age.

    Parameters
    ----------
    events : Events
        The stream.
    folder : str
        For the stores.
    seal_every_s : int
        Seconds of event time between seals.
    progress : callable
        Called with (events done, events in all).
    """
    days = (int(events.seconds[-1]) - int(events.seconds[0])) // DAY_S + 1
    warm_up_s = (int(events.seconds[0]) // DAY_S + max(1, min(14, days // 4))) * DAY_S
    warm = int(np.searchsorted(events.seconds, warm_up_s))
    count = len(events)
    intervals = [
        s for s in INTERVALS_S if s == NEVER_S or (s >= seal_every_s and 2 * s <= days * DAY_S)
    ]
    clock = EventClock(float(events.seconds[0]))
    served = [Served(os.path.join(folder, f"replica-{s}"), s, count, clock) for s in intervals]
    trainer = open_trainer(os.path.join(folder, "store"), clock, seal_every_s)
    every_batch = np.full(count, 0.5, np.float32)

    def before(first: int, last: int) -> None:
        if first >= warm:
            for each in served:
                each.score(events, first, last)

    try:
        for step in trainer.run(events, before=before):
            every_batch[step.start : step.stop] = step.probabilities
            if step.delta is not None:
                border_s = step.delta.sealed_at
                for each in served:
                    each.offer(step.delta, border_s, is_warm_up=border_s <= warm_up_s)
            progress(step.stop, count)
        aucs = {"each batch": _auc_after(warm, events.labels, every_batch)}
        for each in served:
            aucs[_name(each.interval_s)] = _auc_after(warm, events.labels, each.scores)
        return Compared(aucs, count - warm, trainer.store.digest(), len(trainer.table))
    finally:
        trainer.store.close()
        for each in served:
            each.store.close()


def _auc_after(start: int, labels: NDArray[np.float32], scores: NDArray[np.float32]) -> float:
    return auc(labels[start:], scores[start:])


def _name(interval_s: int) -> str:
    if interval_s == NEVER_S:
        return "never"
    if interval_s < DAY_S:
        return f"{interval_s // HOUR_S} h"
    return f"{interval_s // DAY_S} d"


def draw(compared: Compared, path: str) -> None:
    """Draw AUC by sync interval as a PNG.

    Parameters
    ----------
    compared : Compared
        What to draw.
    path : str
        Replaced if it is there.
    """
    import matplotlib as mpl

    mpl.use("Agg")  # A demo runs without a screen.
    from matplotlib import pyplot

    names, values = list(compared.aucs), list(compared.aucs.values())
    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.plot(range(len(names)), values, marker="o", color="#2a6f97")
    for place, value in enumerate(values):
        axes.annotate(
            f"{value:.4f}", (place, value), (0, 8), textcoords="offset points", ha="center"
        )
    axes.set_xticks(range(len(names)), names)
    axes.set_xlabel("serving replica is brought up to date every ... of event time")
    axes.set_ylabel("AUC, predicted before trained")
    axes.set_title(f"Fresh embeddings: {compared.events:,} purchase lines after the warm-up")
    axes.margins(y=0.15)
    axes.grid(visible=True, alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)

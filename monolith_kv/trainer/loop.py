"""The online loop: pull, gradients, push; sealed by event time, resumed at the cursor.

What must hold: a seal falls between two batches, and its cursor names the first event that is not
in it; the clock shows event time only. So the state after any seal depends on the stream alone, and
a trainer that was killed and resumed ends with the very rows of one that was not.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import monolith_kv as mkv
from monolith_kv.trainer.events import EventClock, Events, batch_starts
from monolith_kv.trainer.model import DenseWeights, FactorizationMachine

__all__ = ["OnlineTrainer", "Step"]

DAY_S = 86400


@dataclass(frozen=True)
class Step:
    """One micro batch that was trained on.

    Parameters
    ----------
    start, stop : int
        Positions in the stream.
    probabilities : ndarray of float32, shape (stop - start,)
        What the trainer's own rows said before the step.
    delta : Delta, optional
        Sealed right after this batch.
    snapshot : Snapshot, optional
        Taken right after that.
    expired : int
        Records that the compaction before the seal removed.
    """

    start: int
    stop: int
    probabilities: NDArray[np.float32]
    delta: mkv.Delta | None = None
    snapshot: mkv.Snapshot | None = None
    expired: int = 0


class OnlineTrainer:
    """Trains the rows of one table on a stream, once and in order.

    Parameters
    ----------
    store : Store
        Open "rw" with ``clock=clock`` and ``delta_interval=None``: rows, dense weights and the
        position in the stream become durable together, here and nowhere else.
    table : str
        Name of the table; it has the slices of `model`.
    model : FactorizationMachine
        What to train.
    clock : EventClock
        Moved to the time of each batch.
    seal_every_s, snapshot_every_s : int
        Seconds of event time between seals, which are preceded by a compaction, and between
        snapshots; those fall on a seal.
    batch_size : int
        Events of a micro batch; see `batch_starts`.

    Attributes
    ----------
    position : int
        The first event not trained on. At first where the store's cursor stands.
    weights : DenseWeights
        The dense part of the model.

    Examples
    --------
    >>> import tempfile
    >>> clock, model = EventClock(), FactorizationMachine(fields=1, dim=2)
    >>> fids = np.arange(4, dtype=np.uint64)[:, None]
    >>> events = Events(np.array([0, 1, 70, 71]), fids, np.array([0, 1, 0, 1], np.float32))
    >>> with mkv.open(tempfile.mkdtemp(), delta_interval=None, clock=clock) as store:
    ...     _ = store.create_table("user", model.slices())
    ...     trainer = OnlineTrainer(store, "user", model, clock, seal_every_s=60)
    ...     [(step.stop, step.delta.sequence) for step in trainer.run(events)]
    [(2, 1), (4, 2)]
    """

    def __init__(
        self,
        store: mkv.Store,
        table: str,
        model: FactorizationMachine,
        clock: EventClock,
        *,
        seal_every_s: int = 60,
        snapshot_every_s: int = DAY_S,
        batch_size: int = 64,
    ) -> None:
        if snapshot_every_s % seal_every_s:
            raise ValueError(
                f"snapshot_every_s must be a multiple of seal_every_s ({seal_every_s}), "
                f"got {snapshot_every_s}"
            )
        self.store = store
        self.table = store.table(table)
        self.model = model
        self.clock = clock
        self.seal_every_s = seal_every_s
        self.snapshot_every_s = snapshot_every_s
        self.batch_size = batch_size
        self.position = int(store.cursor.get("position", 0))
        if "position" in store.cursor:
            self.weights = DenseWeights.at(store.dense, self.position)
        else:
            self.weights = DenseWeights.start(model.fields)

    def run(
        self,
        events: Events,
        *,
        before: Callable[[int, int], None] | None = None,
    ) -> Iterator[Step]:
        """Train on the stream from `position` on; yield each batch when it is done.

        Parameters
        ----------
        events : Events
            The stream, from its very beginning: positions count from there.
        before : callable, optional
            Called with (start, stop) of each batch before it is trained on, and after the seal that
            came before it: the place to score it with what is being served.

        Yields
        ------
        Step
            The last one is always sealed.
        """
        starts = batch_starts(events.seconds, self.batch_size, self.seal_every_s)
        at = int(np.searchsorted(starts, self.position))
        if at == len(starts) or starts[at] != self.position:
            raise ValueError(
                f"position {self.position} is not where a batch begins; resume with the stream, "
                "batch_size and seal_every_s that it was left with"
            )
        for first, last in zip(starts[at:-1].tolist(), starts[at + 1 :].tolist(), strict=True):
            self.clock.now = float(events.seconds[first])
            if before is not None:
                before(first, last)
            probabilities = self._train(events, first, last)
            self.position = last
            border_s = self._border(events, first, last)
            if border_s is None:
                yield Step(first, last, probabilities)
            else:
                yield self._seal(events, first, last, probabilities, border_s)

    def _train(self, events: Events, first: int, last: int) -> NDArray[np.float32]:
        """One step on one batch; the probabilities before it."""
        fids = events.fids[first:last]
        flat = fids.reshape(-1)
        shape = (last - first, self.model.fields, self.model.row_dim)
        rows = self.table.pull(flat).reshape(shape)
        gradients, dense, probabilities = self.model.gradients(
            rows, events.labels[first:last], self.weights
        )
        self.table.push(flat, gradients.reshape(len(flat), self.model.row_dim))
        self.weights.step(dense, self.model.lr_dense)
        return probabilities

    def _border(self, events: Events, first: int, last: int) -> int | None:
        """Event time of the seal that is due after this batch, if one is."""
        if last == len(events):
            return int(events.seconds[last - 1])
        due_s = (int(events.seconds[first]) // self.seal_every_s + 1) * self.seal_every_s
        return due_s if int(events.seconds[last]) >= due_s else None

    def _seal(
        self,
        events: Events,
        first: int,
        last: int,
        probabilities: NDArray[np.float32],
        border_s: int,
    ) -> Step:
        # A fixed moment, not the next event's: it must not depend on where a run was cut.
        self.clock.now = float(border_s)
        expired = self.store.compact().expired
        self.store.dense.publish(self.weights.arrays(last))
        delta = self.store.seal(cursor={"position": last, "seconds": border_s})
        snapshot = None
        if last < len(events) and (
            int(events.seconds[first]) // self.snapshot_every_s
            != int(events.seconds[last]) // self.snapshot_every_s
        ):
            snapshot = self.store.snapshot()
        return Step(first, last, probabilities, delta, snapshot, expired)

"""What all processes of the demo agree on: the table, the model, the store's options."""

import os
from dataclasses import dataclass
from typing import Any

from monolith_kv_tools.demo.data import BASKET, DAY_S, FIELDS, PRODUCT

import monolith_kv as mkv
from monolith_kv.trainer import EventClock, FactorizationMachine, OnlineTrainer

TABLE = "features"
MODEL = FactorizationMachine(FIELDS, dim=8)
BATCH_SIZE = 64
RETENTION = "8d"  # Of event time: the slowest replica of the comparison comes once in seven.

# A product seen once says nothing yet, and a third of them never comes again.
GATE = mkv.FrequencyGate({PRODUCT: 2}, capacity=200_000, window="14d")
# A basket is over in a moment: its id would stay for ever.
TTL: dict[int | None, str] = {BASKET: "2h", None: "30d"}


@dataclass(frozen=True)
class Paths:
    """Where one run of the demo keeps what.

    Parameters
    ----------
    root : str
        A folder of this run alone.
    """

    root: str

    @property
    def events(self) -> str:
        """The stream, prepared once for all processes."""
        return os.path.join(self.root, "events.npz")

    @property
    def store(self) -> str:
        """The trainer's."""
        return os.path.join(self.root, "store")

    @property
    def target(self) -> str:
        """What mkv-replicate publishes to."""
        return os.path.join(self.root, "target")

    @property
    def replica(self) -> str:
        """The serving process's."""
        return os.path.join(self.root, "replica")

    @property
    def restored(self) -> str:
        """Made from a snapshot."""
        return os.path.join(self.root, "restored")

    @property
    def intervals(self) -> str:
        """Stores of the comparison of sync intervals."""
        return os.path.join(self.root, "intervals")

    @property
    def address(self) -> str:
        """Where the serving process listens."""
        return "unix:" + os.path.join(self.root, "serve.sock")


def open_trainer(path: str, clock: EventClock, seal_every_s: int) -> OnlineTrainer:
    """Open the store, made with its table if need be, and go on where its cursor stands."""
    store = mkv.open(
        path,
        delta_interval=None,  # Rows and cursor are sealed together, by event time.
        delta_retention=RETENTION,
        clock=clock,
    )
    try:
        options: dict[str, Any] = {"admission": GATE, "ttl": TTL, "exist_ok": True}
        store.create_table(TABLE, MODEL.slices(), **options)
        return OnlineTrainer(
            store,
            TABLE,
            MODEL,
            clock,
            seal_every_s=seal_every_s,
            snapshot_every_s=DAY_S,
            batch_size=BATCH_SIZE,
        )
    except BaseException:
        store.close()
        raise

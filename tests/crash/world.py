"""What a scenario has in hand: folders, a clock, a store, and what a store holds, to compare."""

import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from model import ManualClock

import monolith_kv as mkv
from monolith_kv.replication import Follower
from monolith_kv.storage import manifest

NOW = 1_000_000.0


class State(NamedTuple):
    """All that a store holds. `tables`: by name and id, the bytes of row, state and timestamp."""

    tables: Mapping[str, Mapping[int, bytes]]
    sequence: int = 0
    cursor: str = "{}"
    dense: tuple[int, str] = (0, "{}")


NOTHING = State({})


def state_of(store: mkv.Store) -> State:
    """Read all of an open store."""
    dense = {name: values.tolist() for name, values in store.dense.items()}
    return State(
        {name: rows_of(table) for name, table in store.tables.items()},
        store.sequence,
        json.dumps(dict(store.cursor), sort_keys=True),
        (store.dense.version, json.dumps(dense, sort_keys=True)),
    )


def rows_of(table: mkv.Table) -> dict[int, bytes]:
    found = [ids for ids, _ in table.scan()]
    ids = np.sort(np.concatenate(found)) if found else np.empty(0, np.uint64)
    columns = [table.lookup(ids), table.timestamps(ids), *table.state(ids).values()]
    assert len(table) == len(ids), f"{len(table)} rows are counted, {len(ids)} are there"
    return {
        int(fid): b"".join(column[place].tobytes() for column in columns)
        for place, fid in enumerate(ids)
    }


def is_between(state: State, before: State, after: State) -> bool:
    """Whether each row is as in `before` or as in `after`."""
    if not state.tables.keys() == before.tables.keys() == after.tables.keys():
        return False
    for name, rows in state.tables.items():
        was, will_be = before.tables[name], after.tables[name]
        for fid in rows.keys() | was.keys() | will_be.keys():
            if rows.get(fid) not in (was.get(fid), will_be.get(fid)):
                return False
    return True


class Step(NamedTuple):
    """One call that is watched. Durable: a kill never takes it back, whatever the mode."""

    name: str
    run: Callable[[], object]
    is_durable: bool = False
    is_partial: bool = False  # It may be half done: some rows are as before, others as after it.


class World:
    """Folders and a store of one scenario.

    Parameters
    ----------
    root : Path
        Calls on what lies below `root` / "live" are counted.
    mode, options
        For `monolith_kv.open`.
    damaged : str
        In the name of each file that the scenario damages; "" if it damages none.
    """

    def __init__(
        self, root: Path, mode: Any, options: Mapping[str, Any], damaged: str = ""
    ) -> None:
        self.root = root
        self.live = root / "live"
        self.subject = self.live / "store"
        self.other = root / "other"
        self.clock = ManualClock(NOW)
        self.mode = mode
        self.options = {
            "delta_interval": None, "delta_retention": "3650d", "clock": self.clock, **options
        }  # fmt: skip
        self.store: mkv.Store | None = None
        self.damaged = damaged
        self.live.mkdir(parents=True)

    @property
    def is_upsert_partial(self) -> bool:
        """Whether an upsert without memory may be half done: docs/explanation/durability.md."""
        return (
            self.options.get("durability") not in ("batch", "sync")
            and self.options.get("memory_limit") is None
        )

    # --- stores

    def open(self, path: Path | None = None, mode: Any = None, **more: Any) -> mkv.Store:
        """Open a store as the scenario says, by default the one that is watched."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", mkv.DataLossWarning)
            opened = mkv.open(path or self.subject, mode or self.mode, **{**self.options, **more})
        if path is None:
            self.store = opened
        return opened

    def reopen(self) -> None:
        """Close it, if it is open, and open it."""
        if self.store is not None:
            self.close()
        self.open()

    def close(self) -> None:
        """Close it; whatever that raises, it is closed. One that is closed is opened first."""
        store, self.store = self.store or self.open(), None
        store.close()

    def leave(self) -> None:
        """Leave the files as a kill would, closed by nobody."""
        assert self.store is not None
        kept = self.root / "kept"
        shutil.copytree(self.subject, kept)
        self.close()
        shutil.rmtree(self.subject)
        kept.rename(self.subject)

    # --- calls

    def table(self, name: str) -> mkv.Table:
        assert self.store is not None
        return self.store.table(name)

    def create(self, name: str, dim: int = 3, **more: Any) -> None:
        assert self.store is not None
        self.store.create_table(name, dim, **more)

    def push(self, name: str, first: int, count: int) -> None:
        self.table(name).push(ids(first, count), values(first, count, self.table(name).dim))

    def upsert(self, name: str, first: int, count: int) -> None:
        self.table(name).upsert(ids(first, count), values(first, count, self.table(name).dim))

    def pull(self, name: str, first: int, count: int) -> None:
        rows = self.table(name).pull(ids(first, count))
        np.testing.assert_array_equal(rows, self.table(name).lookup(ids(first, count)))

    def remove(self, name: str, first: int, count: int) -> None:
        self.table(name).remove(ids(first, count))

    # --- what there is

    def problems(self, store: mkv.Store) -> list[str]:
        """What verify finds, but for what the scenario has damaged."""
        return [p for p in store.verify() if not self.damaged or self.damaged not in p]

    def state(self) -> State | None:
        """What the open store holds; None if it is closed."""
        return None if self.store is None else state_of(self.store)


def ids(first: int, count: int) -> Any:
    """Ids far apart, so that they fall into all shards."""
    return (np.arange(first, first + count, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)


def values(first: int, count: int, dim: int) -> Any:
    return np.random.default_rng([first, count]).normal(size=(count, dim)).astype(np.float32)


def begin(world: World, *, rows: int = 40) -> None:
    """A store with rows of one sealed delta and of calls since."""
    world.open()
    world.create("item", 3, optimizer=mkv.Adagrad(lr=0.5))
    world.upsert("item", 0, rows)
    world.store.seal(cursor={"offset": 1})
    world.push("item", 5, 10)


# --- looking at files that nobody has open -----------------------------------------------------


def look_at_store(world: World, path: Path) -> State:
    """Open it and read all of it; a folder without a manifest holds nothing."""
    found = manifest.load(str(path)) if path.exists() else None
    if found is None:
        return NOTHING
    # What was a replica may have been promoted.
    with world.open(path, found.mode) as store:
        assert world.problems(store) == []
        return state_of(store)


def look_at_target(world: World, path: Path) -> State:
    """Follow it into a new replica and read that."""
    if not path.exists():
        return NOTHING
    replica = world.other / "look"
    shutil.rmtree(replica, ignore_errors=True)
    follower = Follower(str(path), str(replica), delta_interval=None, clock=world.clock)
    with follower:
        try:
            follower.run_once()
        except (mkv.Error, OSError):  # Nothing was published yet.
            return NOTHING
    return look_at_store(world, replica)


def look_at_nothing(world: World, path: Path) -> State:
    """For a reader: what it sees is not what lies there."""
    return NOTHING


Look = Callable[[World, Path], State]


class Scenario(NamedTuple):
    """A kind of work: what is made ready, then the steps that are watched."""

    name: str
    make: Callable[[World], Sequence[Step]]
    options: Mapping[str, Any] = {}
    mode: str = "rw"
    look: Look = look_at_store
    damaged: str = ""
    raises: tuple[type[Exception], ...] = ()  # besides what is promised of the fault

    @property
    def may_lose(self) -> bool:
        """Whether a kill may go back to the last durable step."""
        return self.mode == "rw" and self.options.get("durability") not in ("batch", "sync")

    def world(self, root: Path) -> World:
        return World(root, self.mode, self.options, self.damaged)

"""SIGKILL at random instants: what the durability mode promises is there, and nothing else.

A child makes random calls on tiny tables and acknowledges each after it returned; it is killed in
the middle of whatever it does, the opening included. The oracle replays the same calls: what is
recovered must be the state after some number of them, all acknowledged ones in "batch" and "sync",
at least up to the last acknowledged seal, snapshot or close in "none" and "interval".

    python -m crash sigkill
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from checks import FAST_FOLDER
from crash.figures import Figure
from crash.worker import FIDS, TABLES, Call, Clock, calls, open_store
from formulas import kernel
from model import Gate, ManualClock, Part, StoreModel, TableModel

import monolith_kv as mkv

MODES = ("none", "interval", "batch", "sync")
KILLS_FULL, KILLS_SMALL = 10_000, 48
RUNS_OF_A_STORE = 4
DURABLE = ("seal", "snapshot", "reopen")


class Killer:
    """The warm process, and children of it that are killed."""

    def __init__(self) -> None:
        self.kills = 0
        tests = Path(__file__).parent.parent
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}"},
        )

    def kill(self, request: dict[str, Any], after: int, spin_ns: int) -> int:
        """Start a child, kill it some time after it acknowledged `after` calls; how many it did."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        first = b""
        while not first.endswith(b"\n"):
            # By the byte: dots may follow the line at once, and come before it.
            first += self.process.stdout.read(1)
        acknowledged, pid = first.count(b"."), int(first.replace(b".", b"").split()[1])
        rest = b""
        while acknowledged + rest.count(b".") < after and b"dead" not in rest:
            rest += self.process.stdout.read(4_096)
        end = time.perf_counter_ns() + spin_ns
        while time.perf_counter_ns() < end:
            pass
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self.kills += 1
        while not rest.endswith(b"\n"):
            rest += self.process.stdout.read(4_096)
        dots, status = rest.split(b"dead")
        assert int(status) == -signal.SIGKILL, "the child failed, see its standard error"
        return acknowledged + dots.count(b".")

    def close(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


# --- the oracle --------------------------------------------------------------------------------


def new_table(name: str) -> TableModel:
    given = TABLES[name]
    optimizer, initializer = kernel("SGD", lr=1.0), kernel("Zeros")
    if given.get("optimizer") == "Adagrad":
        optimizer, initializer = kernel("Adagrad", lr=0.5), kernel("Constant", value=0.5)
    gate = Gate(given["threshold"], 30 * 86_400) if "threshold" in given else None
    part = Part("", given["dim"], optimizer, initializer)
    return TableModel(name, [part], gate, given.get("ttl"))


def play(model: StoreModel, call: Call, clock: ManualClock) -> bool:
    """What the call does to a store, by the contract; whether a seal was free to publish."""
    if call.kind in ("pull", "push", "upsert", "remove"):
        play_on_table(model.tables[call.table], call, clock)
    elif call.kind in ("seal", "reopen"):
        given = call.kind == "seal" and call.value % 2
        cursor = {"offset": call.value} if given else None
        sealing = model.sealing(cursor)
        if sealing.must:
            model.seal(cursor)
        return sealing.may and not sealing.must
    elif call.kind == "create":
        model.create_table(new_table(call.table))
    elif call.kind == "drop":
        model.drop_table(call.table)
    elif call.kind == "configure":
        model.tables[call.table].ttl = 20 + call.value
        model.settings_pending = True
    elif call.kind == "dense":
        model.publish_dense({"w": np.array([call.value])}, model.dense_version + 1)
    elif call.kind == "advance":
        clock.advance(call.value)
    elif call.kind == "compact":
        for table in model.tables.values():
            table.remove(table.expired(clock.now))
    return False


def play_on_table(table: TableModel, call: Call, clock: ManualClock) -> None:
    if call.kind == "pull":
        for fid, verdict in table.see(call.ids, clock).items():
            assert verdict.must == verdict.may
            if verdict.must:
                table.insert(fid, clock.now)
    elif call.kind == "push":
        table.push(call.ids, call.rows, clock.now)
    elif call.kind == "upsert":
        table.upsert(call.ids, call.rows, clock.now)
    else:
        table.remove(call.ids)


def assert_same(store: mkv.Store, model: StoreModel) -> None:
    ids = np.array(FIDS, np.uint64)
    assert set(store.tables) == set(model.tables)
    for name, expected in model.tables.items():
        table, found = store.table(name), np.empty(len(ids), bool)
        rows, (expected_rows, there) = table.lookup(ids, found=found), expected.lookup(FIDS)
        np.testing.assert_array_equal(found, there)
        np.testing.assert_allclose(rows, expected_rows, rtol=1e-5, atol=1e-5)
        assert len(table) == there.sum()
        assert table.timestamps(ids).tolist() == expected.timestamps(FIDS)
        for part, values in expected.state(FIDS).items():
            np.testing.assert_allclose(table.state(ids)[part], values, rtol=1e-5, atol=1e-5)


def is_same(store: mkv.Store, model: StoreModel) -> bool:
    try:
        assert_same(store, model)
    except AssertionError:
        return False
    return True


class State(NamedTuple):
    """What a store may hold: after some of the calls."""

    model: StoreModel
    now: float
    free_seals: int  # so many may have published a delta, or not


class Life:
    """One child's calls on a store, and all states that it may have left."""

    def __init__(
        self, model: StoreModel, clock: ManualClock, request: dict[str, Any], begun: int
    ) -> None:
        stream = calls(request["seed"], request["run"], request["tables"])
        self.begun = [next(stream) for _ in range(begun)]  # all but the last were acknowledged
        self.request = request
        self.states = [State(model.copy(), clock.now, 0)]
        self.durable = 0  # the state that the last acknowledged durable call made
        model = model.copy()
        for number, call in enumerate(self.begun, start=1):
            free = play(model, call, clock) + self.states[-1].free_seals
            self.states.append(State(model.copy(), clock.now, free))
            if call.kind in DURABLE and number < begun:
                self.durable = number
        if request["durability"] in ("batch", "sync"):
            self.durable = max(begun - 1, 0)


def half_compacted(store: mkv.Store, before: StoreModel, now: float) -> StoreModel:
    """A compaction goes in steps: some of the expired rows may be gone when it is cut short."""
    model = before.copy()
    for name, table in model.tables.items():
        expired = table.expired(now)
        if name in store.tables and expired:
            alive = store.table(name).contains(np.array(expired, np.uint64))
            table.remove([fid for fid, is_in in zip(expired, alive, strict=True) if not is_in])
    return model


def check_promise(store: mkv.Store, life: Life) -> StoreModel:
    """Find the state that was recovered among those that the mode allows."""
    allowed = [state.model for state in life.states[life.durable :]]
    if life.begun and life.begun[-1].kind == "compact":
        before = life.states[-2]
        allowed.append(half_compacted(store, before.model, before.now))
    matching = [model for model in allowed if is_same(store, model)]
    last = "\n".join(str(call) for call in life.begun[-8:])
    assert matching, f"{len(life.begun)} calls begun, {life.durable} durable; the last:\n{last}"
    assert any(
        0 <= store.sequence - state.model.sequence <= state.free_seals
        and dict(store.cursor) == state.model.cursor
        for state in life.states[-2:]
    )
    dense = [as_lists(state.model.dense) for state in life.states[-2:]]
    assert as_lists(store.dense) in dense
    return matching[0]


def as_lists(dense: Mapping[str, Any]) -> dict[str, list[int]]:
    return {name: values.tolist() for name, values in dense.items()}


def settled(store: mkv.Store, model: StoreModel) -> StoreModel:
    """What the next child finds: the rows recovered, all of them sealed."""
    after = model.copy()
    after.seal()
    after.sequence, after.cursor = store.sequence, dict(store.cursor)
    after.dense = {name: np.array(values) for name, values in store.dense.items()}
    after.dense_version = store.dense.version
    return after


def check_replica(store: mkv.Store, folder: Path) -> None:
    """All deltas and one more seal bring a replica to where the recovered store is."""
    with mkv.open(folder, mode="replica", delta_interval=None) as replica:
        for delta in store.deltas():
            assert replica.apply(delta)
        delta = store.seal()
        assert delta is None or replica.apply(delta)
        assert replica.sequence == store.sequence
        assert replica.digest() == store.digest()
        assert as_lists(replica.dense) == as_lists(store.dense)


def open_in_parent(request: dict[str, Any], clock: ManualClock) -> mkv.Store:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mkv.DataLossWarning)
        return open_store(request, Clock(clock.now))


# --- lives and deaths ---------------------------------------------------------------------------


def live_and_die(path: Path, killer: Killer, seed: int, durability: str) -> None:
    """Several lives on one store, each ended by a kill."""
    dice = random.Random(seed)
    model, clock, epoch = StoreModel(), ManualClock(1_000_000.0), 1
    request = {
        "path": str(path / "store"),
        "seed": seed,
        "durability": durability,
        "memory_limit": 64 * 1024 if seed % 4 == 3 else None,
        "only_open": False,
    }
    for number in range(RUNS_OF_A_STORE):
        request |= {"run": number, "tables": sorted(model.tables), "now": clock.now}
        after = dice.choice([0, dice.randrange(1, 12), dice.randrange(60), dice.randrange(150)])
        # The opening was acknowledged first, so this is the number of calls begun.
        begun = killer.kill(request, after, dice.randrange(2_000_000))
        life = Life(model, clock, request, begun)
        # Recovery may itself be killed, again and again.
        for _ in range(dice.choice([0, 0, 2])):
            opening = {**request, "only_open": True, "now": clock.now}
            killer.kill(opening, 0, dice.randrange(8_000_000))
        with open_in_parent(request, clock) as store:
            model = check_promise(store, life)
            is_unclean = begun > 0 and life.begun[-1].kind != "reopen"
            assert store.epoch >= epoch + is_unclean
            epoch = store.epoch
            assert store.verify() == []
            check_replica(store, path / f"replica-{number}")
            model = settled(store, model)


def kill_many(killer: Killer, durability: str, kills: int) -> None:
    """So many deaths, each store dying several times; every fourth store overflows."""
    for seed in range(kills // RUNS_OF_A_STORE):
        with tempfile.TemporaryDirectory(prefix="mkv-kill-", dir=FAST_FOLDER) as folder:
            live_and_die(Path(folder), killer, seed, durability)


def measure(full: bool) -> Iterator[Figure]:
    """Kill the same number of times in each mode; what is not promised raises AssertionError."""
    kills = KILLS_FULL if full else KILLS_SMALL
    started, killer = time.monotonic(), Killer()
    wrong = 0
    try:
        for durability in MODES:
            try:
                kill_many(killer, durability, kills // len(MODES))
            except AssertionError:
                wrong += 1
                traceback.print_exc()
    finally:
        killer.close()
    yield Figure(
        "SIGKILLs",
        f"{killer.kills:,} in {len(MODES)} modes, {wrong} of them broke their promise",
        "10,000, 0 acknowledged lost in batch and sync",
        not wrong and killer.kills >= kills,
        time.monotonic() - started,
    )

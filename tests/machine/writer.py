"""The state machine, part one: one writer and every call on its tables, each step checked.

Bounds of the model (near a window's edge, under a budget) are settled by what was observed; rows
computed in float32 are compared within rounding and the engine's bits then taken over, so that
everything else (recovery, snapshots, replicas) is compared bit for bit.
"""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from checks import (
    FAST_FOLDER,
    assert_store,
    assert_table,
    create,
    rows_key,
    scanned,
    settle,
    ttl_argument,
    u64,
)
from formulas import kernel
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from model import Gate, ManualClock, Part, StoreModel, TableModel

import monolith_kv as mkv

DAY = 86_400
RETENTION = 2 * DAY
MEMORY_LIMIT = 16 * 1024  # less than two rows of the wide table

# Ends of the range, neighbours, three slots (7 and 9 have rules of their own), and random ones.
FIDS = [0, 1, 2, 3, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1]
FIDS += [(slot << 48) + n for slot in (7, 9, 11) for n in range(4)]
FIDS += np.random.default_rng(1).integers(0, 2**64, 16, np.uint64).tolist()

NAMES = ["item", "user.v2", "a-b_c"]
LAYOUTS = {
    "sgd": [Part("", 3, kernel("SGD", lr=0.5), kernel("Constant", value=0.25))],
    "adagrad": [Part("", 2, kernel("Adagrad", weight_decay=0.01), kernel("Uniform", seed=5))],
    "wide": [Part("", 700, kernel("Adam", lr=0.01), kernel("Normal", std=0.1))],
    "ftrl": [Part("", 1, kernel("Ftrl", l1=0.1, l2=0.01), kernel("Zeros"))],
    "slices": [
        Part("bias", 1, kernel("RMSProp"), kernel("Zeros")),
        Part("vector", 5, kernel("RowWiseAdagrad"), kernel("Normal", seed=3)),
        Part("other", 2, kernel("Momentum"), kernel("Uniform", low=-1.0, high=1.0)),
    ],
}
GATES = [
    None,
    Gate(2, window=3_600),
    Gate(3, window=DAY),
    Gate(((7, 4), (9, 1), (None, 2)), window=DAY),
    Gate(((7, 3),), window=600),
]
TTLS = [None, 60, 10 * DAY, ((7, 30), (None, 3_600)), ((9, 5),)]
CURSORS = [{}, {"offset": 1}, {"partition": {"0": 17}, "name": "clicks"}]

picks = st.integers(0, 1_000)
GROUPS = {"low": FIDS[:12], "high": FIDS[12:], "even": FIDS[::2], "all": FIDS}
# Places in FIDS or the name of a group, so that what a failing run prints stays readable.
chosen = st.one_of(
    st.lists(st.integers(0, len(FIDS) - 1), max_size=12), st.sampled_from(sorted(GROUPS))
)
seeds = st.integers(0, 2**16 - 1)
jumps = st.one_of(
    st.integers(0, 100), st.sampled_from([600.5, 3_600, DAY, 11 * DAY, -1, -90.25, -2 * DAY])
)
layouts, gates, ttls = (
    st.sampled_from(sorted(LAYOUTS)),
    st.sampled_from(GATES),
    st.sampled_from(TTLS),
)
# What training mostly does. A rule makes several of these calls, for the rules are drawn evenly.
trained = st.lists(
    st.tuples(
        st.sampled_from(["pull", "pull", "push", "push", "upsert", "remove"]),
        picks,
        chosen,
        seeds,
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


def fids_of(choice: list[int] | str) -> list[int]:
    return GROUPS[choice] if isinstance(choice, str) else [FIDS[place] for place in choice]


def quarters(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Multiples of a quarter, whose sums are exact in float32 in any order."""
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(np.float32) / 4


class WriterMachine(RuleBasedStateMachine):
    """One store opened "rw" and the calls on its tables."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="mkv-model-", dir=FAST_FOLDER))
        self.clock = ManualClock()
        self.model = StoreModel()
        self.primary: Any = None
        self.paths = 0
        self.changes = 0  # counts calls that may have changed the primary
        self.digests: dict[Any, str] = {}

    @initialize(
        durability=st.sampled_from(["none", "interval", "batch", "sync"]),
        limited=st.booleans(),
        tables=st.tuples(*[st.tuples(layouts, gates, ttls)] * 2),
        first=trained,
    )
    def open_new(self, durability: str, limited: bool, tables: Any, first: Any) -> None:
        self.volatile = durability in ("none", "interval")
        self.options = {
            "durability": durability,
            "delta_interval": None,
            "delta_retention": RETENTION,
            "memory_limit": MEMORY_LIMIT if limited else None,
            "clock": self.clock,
        }
        self.adopt(mkv.open(self.new_path(), **self.options), self.model)
        for name, (layout, gate, ttl) in zip(NAMES, tables, strict=False):
            self.create_table(name, layout, gate, ttl)
        self.train(first)
        self.begun()

    def begun(self) -> None:
        """What else a run begins with."""

    def teardown(self) -> None:
        try:
            if self.primary is not None:
                assert self.primary.verify() == []
                self.primary.close()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def new_path(self) -> Path:
        self.paths += 1
        return self.folder / f"{self.paths}"

    def adopt(self, store: Any, model: StoreModel) -> None:
        """Make this the writer whose calls follow."""
        self.primary, self.model = store, model
        self.oldest_delta = model.sequence
        self.all_durable()
        self.changes += 1

    # What a kill may fall back to: every state since the last durable one, oldest first.
    def all_durable(self) -> None:
        self.prefixes = [self.model.copy()]

    def changed(self) -> None:
        self.changes += 1
        if self.volatile:
            self.prefixes.append(self.model.copy())
        else:
            # Sightings alone wait for the next seal: keep what they were then.
            self.prefixes = [self.prefixes[0]]

    def pick(self, pick: int) -> tuple[Any, TableModel]:
        names = sorted(self.model.tables)
        name = names[pick % len(names)]
        return self.primary.table(name), self.model.tables[name]

    @invariant()
    def primary_equals_model(self) -> None:
        if self.primary is not None:
            self.check(self.primary, self.model)

    def check(self, store: Any, model: StoreModel) -> None:
        assert_store(store, model, FIDS)
        for name, table in model.tables.items():
            # One digest for one content, over all stores of the run; so equality is not luck.
            digest = store.digest(name)
            key = (name, table.dim, rows_key(table))
            assert self.digests.setdefault(key, digest) == digest
        content = frozenset((name, t.dim, rows_key(t)) for name, t in model.tables.items())
        assert self.digests.setdefault(content, store.digest()) == store.digest()

    # --- tables

    @rule(name=st.sampled_from(NAMES), layout=layouts, gate=gates, ttl=ttls)
    def create_table(self, name: str, layout: str, gate: Gate | None, ttl: Any) -> None:
        table = TableModel(name, LAYOUTS[layout], gate, ttl)
        try:
            create(self.primary, table)
        except mkv.TableExistsError:
            assert name in self.model.tables
            return
        assert name not in self.model.tables
        self.model.create_table(table)
        self.changed()

    @precondition(lambda self: self.model.tables)
    @rule(pick=picks, layout=layouts, ttl=ttls)
    def create_existing(self, pick: int, layout: str, ttl: Any) -> None:
        _, model = self.pick(pick)
        kinds = [(p.name, p.dim, p.optimizer.name) for p in LAYOUTS[layout]]
        same = kinds == [(p.name, p.dim, p.optimizer.name) for p in model.parts]
        try:
            create(
                self.primary,
                TableModel(model.name, LAYOUTS[layout] if not same else model.parts),
                admission=None if model.gate is None else model.gate.make(mkv),
                ttl=ttl_argument(ttl),
                exist_ok=True,
            )
        except mkv.SchemaError:
            assert not same
            return
        assert same
        model.ttl = ttl
        # Setting the gate that there is keeps counts or not, as it likes.
        model.doubt_sightings()
        self.model.settings_pending = True
        self.changed()

    @precondition(lambda self: len(self.model.tables) > 1)
    @rule(pick=picks)
    def drop_table(self, pick: int) -> None:
        table, model = self.pick(pick)
        self.primary.drop_table(model.name)
        self.model.drop_table(model.name)
        self.refused(mkv.ClosedError, lambda: table.lookup([]))
        self.refused(KeyError, lambda: self.primary.table(model.name))
        self.changed()

    def refused(self, error: type[Exception], call: Any) -> None:
        try:
            call()
        except error:
            return
        raise AssertionError(f"{error.__name__} was not raised")

    # --- training

    def train(self, calls: Any) -> None:
        for kind, pick, choice, seed, is_odd in calls if self.model.tables else []:
            (table, model), ids = self.pick(pick), fids_of(choice)
            if kind == "pull":
                self.pull(table, model, ids, is_odd)
            elif kind == "remove":
                assert table.remove(u64(ids)) == model.remove(ids)
            else:
                values = quarters(seed, (len(ids), model.dim))
                getattr(self, kind)(table, model, ids, values)
            self.changed()

    # Several times the same, for what happens more often than once a minute or once a day.
    @rule(calls=trained)
    def train_first(self, calls: Any) -> None:
        self.train(calls)

    @rule(calls=trained)
    def train_again(self, calls: Any) -> None:
        self.train(calls)

    @rule(calls=trained)
    def train_more(self, calls: Any) -> None:
        self.train(calls)

    def pull(self, table: Any, model: TableModel, ids: list[int], is_odd: bool) -> None:
        out = np.full((len(ids), model.dim), np.nan, np.float32) if is_odd else None
        rows = table.pull(u64(ids).view(np.int64) if is_odd else u64(ids), out=out)
        assert out is None or rows is out
        self.observe_admissions(table, model, ids)
        np.testing.assert_array_equal(rows, model.lookup(ids)[0])

    def observe_admissions(self, table: Any, model: TableModel, ids: Sequence[int]) -> None:
        verdicts = model.see(ids, self.clock)
        present = table.contains(u64(list(verdicts))).tolist()
        admitted = [fid for fid, is_in in zip(verdicts, present, strict=True) if is_in]
        for fid, verdict in verdicts.items():
            assert fid in admitted or not verdict.must, f"{fid} was kept out too long"
            assert fid not in admitted or verdict.may, f"{fid} was admitted early"
        for fid in admitted:
            model.insert(fid, self.clock.now)
        settle(table, model, admitted)

    def push(self, table: Any, model: TableModel, ids: list[int], gradients: np.ndarray) -> None:
        table.push(u64(ids), gradients)
        settle(table, model, model.push(ids, gradients, self.clock.now))

    def upsert(self, table: Any, model: TableModel, ids: list[int], rows: np.ndarray) -> None:
        table.upsert(u64(ids), rows)
        model.upsert(ids, rows, self.clock.now)

    # --- settings

    @precondition(lambda self: self.model.tables)
    @rule(pick=picks, ttl=ttls)
    def configure_ttl(self, pick: int, ttl: Any) -> None:
        table, model = self.pick(pick)
        table.configure(ttl=ttl_argument(ttl))
        model.ttl = ttl
        self.model.settings_pending = True
        self.changed()

    @precondition(lambda self: self.model.tables)
    @rule(pick=picks, gate=gates)
    def configure_gate(self, pick: int, gate: Gate | None) -> None:
        table, model = self.pick(pick)
        table.configure(admission=None if gate is None else gate.make(mkv))
        model.gate = gate
        model.doubt_sightings()
        self.model.settings_pending = True
        self.changed()

    @precondition(lambda self: self.model.tables)
    @rule(pick=picks, part=picks, lr=st.sampled_from([0.25, 0.125]))
    def configure_learning_rate(self, pick: int, part: int, lr: float) -> None:
        table, model = self.pick(pick)
        chosen = model.parts[part % len(model.parts)]
        arguments = dict(chosen.optimizer.arguments) | {"lr": lr}
        optimizer = kernel(chosen.optimizer.name, **arguments)
        made = optimizer.make(mkv)
        table.configure(optimizer={chosen.name: made} if chosen.name else made)
        model.set_optimizer(chosen.name, optimizer)
        self.model.settings_pending = True
        self.changed()

    # --- time

    @rule(seconds=jumps)
    def move_clock(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(seconds=jumps, budget=st.sampled_from([None, "10s", 1e-6]), force=st.booleans())
    def compact(self, seconds: float, budget: Any, force: bool) -> None:
        self.clock.advance(seconds)
        done = self.primary.compact(budget=budget, force=force)
        removed = left = 0
        for name, model in self.model.tables.items():
            expired = model.expired(self.clock.now)
            alive = self.primary.table(name).contains(u64(expired)).tolist()
            for fid, is_alive in zip(expired, alive, strict=True):
                left += is_alive
                if not is_alive:
                    model.erase(fid)
                    removed += 1
        assert done.expired == removed
        assert done.finished or budget is not None
        assert not (done.finished and left)
        self.changed()

    # --- reads, which change nothing

    @precondition(lambda self: self.model.tables)
    @rule(
        pick=picks,
        ids=chosen,
        seed=seeds,
        combiner=st.sampled_from(["sum", "mean", "sqrtn"]),
        weighted=st.booleans(),
        with_end=st.booleans(),
    )
    def lookup_pooled(
        self, pick: int, ids: Any, seed: int, combiner: str, weighted: bool, with_end: bool
    ) -> None:
        (table, model), ids = self.pick(pick), fids_of(ids)
        random = np.random.default_rng(seed)
        cuts = np.sort(random.integers(0, len(ids) + 1, random.integers(0, 4)))
        starts = [0, *cuts.tolist()]
        ends = [*starts, len(ids)]
        weights = quarters(seed, (len(ids),)) if weighted and combiner == "sum" else None
        pooled = table.lookup_pooled(
            u64(ids),
            np.array(ends if with_end else starts),
            combiner=combiner,
            weights=weights,
            include_last_offset=with_end,
        )
        expected = model.lookup_pooled(ids, ends, combiner, weights)
        np.testing.assert_allclose(pooled, expected, rtol=1e-5, atol=1e-5)

    @precondition(lambda self: self.model.tables)
    @rule(pick=picks, fid=st.sampled_from(FIDS), batch=st.integers(1, 50))
    def read_one_and_all(self, pick: int, fid: int, batch: int) -> None:
        table, model = self.pick(pick)
        signed = fid - 2**64 if fid >= 2**63 else fid
        assert (fid in table) == (signed in table) == (fid in model.rows)
        if fid in model.rows:
            np.testing.assert_array_equal(table[fid], model.rows[fid].embedding)
            np.testing.assert_array_equal(table[signed], model.rows[fid].embedding)
        else:
            self.refused(KeyError, lambda: table[fid])
        rows = {fid: row.embedding.tobytes() for fid, row in model.rows.items()}
        assert scanned(table, batch) == rows
        assert_table(table, model, FIDS)

    @precondition(lambda self: self.model.tables)
    @rule(pick=picks, ids=chosen)
    def prefetch(self, pick: int, ids: Any) -> None:
        table, _ = self.pick(pick)
        table.prefetch(u64(fids_of(ids)))

    @rule()
    def verify_and_stats(self) -> None:
        assert self.primary.verify() == []
        assert isinstance(self.primary.stats(), dict)

"""The loop: seals by event time, goes on from the cursor, ends as if it had never stopped."""

import shutil
import warnings

import numpy as np
import pytest

import monolith_kv as mkv
from monolith_kv.trainer import (
    EventClock,
    Events,
    FactorizationMachine,
    OnlineTrainer,
    auc,
    make_fids,
)

USER, ITEM, BASKET = 1, 2, 3
MODEL = FactorizationMachine(fields=3, dim=4)
HOUR_S = 3600
BEGIN_S = 1_500_000_000 // 86400 * 86400


def make_stream(rng, count=3000, days=3):
    seconds = BEGIN_S + np.sort(rng.integers(0, days * 86400, count))
    users, items = rng.integers(0, 40, count), rng.zipf(1.5, count) % 100
    odds = rng.normal(0, 1.5, 40)[users] + rng.normal(0, 1.5, 100)[items]
    labels = (rng.random(count) < 1 / (1 + np.exp(-odds))).astype(np.float32)
    fids = [make_fids(USER, users), make_fids(ITEM, items), make_fids(BASKET, seconds)]
    return Events(seconds, np.stack(fids, axis=1), labels)


def open_trainer(path, events):
    clock = EventClock(float(events.seconds[0]))
    store = mkv.open(path, delta_interval=None, delta_retention="30d", clock=clock)
    store.create_table(
        "t",
        MODEL.slices(),
        admission=mkv.FrequencyGate({ITEM: 2}, capacity=1000),
        ttl={BASKET: "2h"},
        exist_ok=True,
    )
    return OnlineTrainer(store, "t", MODEL, clock, seal_every_s=HOUR_S, batch_size=16)


def test_a_seal_falls_on_each_border_with_the_cursor_behind_its_batch(store_dir, rng):
    events = make_stream(rng)
    trainer = open_trainer(store_dir, events)
    with trainer.store as store:
        sealed = [step for step in trainer.run(events) if step.delta is not None]
        assert store.cursor["position"] == len(events)
    for step in sealed[:-1]:
        border_s = int(step.delta.sealed_at)
        assert border_s % HOUR_S == 0
        assert events.seconds[step.stop - 1] < border_s <= events.seconds[step.stop]
    assert sealed[-1].stop == len(events)
    assert [step.delta.sequence for step in sealed] == list(range(1, len(sealed) + 1))


def test_a_snapshot_is_taken_when_the_day_changes(store_dir, rng):
    events = make_stream(rng, days=3)
    trainer = open_trainer(store_dir, events)
    with trainer.store:
        taken = [step for step in trainer.run(events) if step.snapshot is not None]
    assert len(taken) == 2


def test_each_batch_is_shown_before_it_is_trained_on(store_dir, rng):
    events = make_stream(rng, count=500)
    trainer = open_trainer(store_dir, events)
    shown = []

    def before(first, last):
        # Baskets are of this batch alone: none of them can have a row yet.
        baskets = events.fids[first:last, 2]
        assert not trainer.table.contains(baskets).any()
        shown.append((first, last))

    with trainer.store:
        steps = [(step.start, step.stop) for step in trainer.run(events, before=before)]
    assert shown == steps
    assert [stop for _, stop in steps[:-1]] == [start for start, _ in steps[1:]]


def test_gate_and_ttl_do_their_work(store_dir, rng):
    events = make_stream(rng)
    trainer = open_trainer(store_dir, events)
    with trainer.store:
        expired = sum(step.expired for step in trainer.run(events))
        last_day = events.seconds > events.seconds[-1] - HOUR_S
        live = trainer.table.contains(events.fids[:, 2])
        once, counts = np.unique(events.fids[:, 1], return_counts=True)
        admitted = trainer.table.contains(once)
    assert expired > 0.9 * (~last_day).sum()
    assert live[last_day].all()
    assert not admitted[counts == 1].any()
    assert admitted[counts > 40].all()


def test_it_learns(store_dir, rng):
    events = make_stream(rng, count=6000)
    trainer = open_trainer(store_dir, events)
    with trainer.store:
        said = np.concatenate([step.probabilities for step in trainer.run(events)])
    half = len(events) // 2
    assert auc(events.labels[half:], said[half:]) > 0.7


def test_a_killed_trainer_ends_with_the_rows_of_one_that_was_not(store_dir, rng, tmp_path):
    events = make_stream(rng)
    whole = open_trainer(tmp_path / "whole", events)
    with whole.store:
        for _ in whole.run(events):
            pass
        expected = whole.store.digest(), whole.weights.intercept.copy()
    killed = open_trainer(store_dir, events)
    crash_image = store_dir.parent / "image"
    last_sealed = 0
    for step in killed.run(events):
        if step.delta is not None:
            last_sealed = step.stop
        elif step.stop > len(events) // 2:
            copy_folder(store_dir, crash_image)  # What a SIGKILL would leave, in this very moment.
            break
    killed.store.close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mkv.DataLossWarning)  # What is not sealed may be told.
        resumed = open_trainer(crash_image, events)
    with resumed.store as store:
        assert resumed.position == store.cursor["position"] == last_sealed > 0
        assert store.epoch == 2
        for _ in resumed.run(events):
            pass
        assert store.digest() == expected[0]
        assert resumed.weights.intercept == expected[1]


def copy_folder(source, target):
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("LOCK"))


def test_a_stream_that_was_cut_otherwise_is_refused(store_dir, rng):
    events = make_stream(rng)
    trainer = open_trainer(store_dir, events)
    with trainer.store:
        next(iter(trainer.run(events)))
        trainer.batch_size = 7
        with pytest.raises(ValueError, match="is not where a batch begins"):
            next(iter(trainer.run(events)))


def test_snapshots_must_fall_on_seals(store_dir, rng):
    events = make_stream(rng, count=10)
    trainer = open_trainer(store_dir, events)
    with trainer.store as store, pytest.raises(ValueError, match="must be a multiple"):
        OnlineTrainer(store, "t", MODEL, trainer.clock, seal_every_s=7, snapshot_every_s=10)

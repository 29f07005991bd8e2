"""TableCore, the door between the planes: arrays in and out, the GIL released in between.

Arguments were checked above, in table.py. Ids are split by shard; shards are worked one after the
other, each under its lock. Positions of rows that lie in overflow go back to the caller, who reads
them there.
"""

import numpy as np

from libc.stdint cimport int64_t, uint8_t, uint64_t

from monolith_kv._admission cimport shards_pull, shard_see
from monolith_kv._batch cimport Batch, batch_destroy
from monolith_kv._buffer cimport Buffer, buffer_free, buffer_init
from monolith_kv._change cimport (
    Change,
    change_begin,
    change_check,
    change_create,
    change_destroy,
    change_run,
    change_set,
    shards_forget,
)
from monolith_kv._check cimport core_problems
from monolith_kv._core cimport (
    batch_of,
    fids_of,
    join_parts,
    raise_freeing,
    raise_status,
    take_bytes,
    take_fids,
    whole_seconds,
)
from monolith_kv._hashing cimport SHARDS
from monolith_kv._lock cimport lock_alone, lock_leave
from monolith_kv._pooling cimport pool_bags
from monolith_kv._read cimport (
    lookup_is_short,
    shards_contain,
    shards_leave,
    shards_lookup,
    shards_share_soon,
    shards_state,
    shards_timestamps,
)
from monolith_kv._shard cimport MKV_ADD64, Shard, shards_promise
from monolith_kv._sketch cimport sketch_pack, sketch_packed_bytes, sketch_unpack
from monolith_kv._types cimport STATUS_OK, fid_t, status_t, unix_s_t
from monolith_kv._views cimport Views
from monolith_kv._write cimport shard_insert, shard_remove, shards_upsert

from monolith_kv._core import Barrier, give_back_freed, in_hand_block, in_hand_bytes
from monolith_kv._steps import Helper, PreparedChange

__all__ = [
    "Barrier", "Helper", "PreparedChange", "TableCore", "give_back_freed", "in_hand_block",
    "in_hand_bytes"]


cdef object cold_positions(Buffer* cold):
    if cold.count == 0:
        buffer_free(cold)
        return None
    return take_bytes(cold).view(np.int64)


cdef class TableCore(Views):
    """One table's rows. See monolith_kv/_table.pyi for what each method takes and gives."""

    cdef public object inserted

    # --- reads -------------------------------------------------------------------------------

    def lookup(self, const uint64_t[::1] ids, float[:, ::1] out, uint8_t[::1] found=None):
        cdef Buffer cold
        cdef const fid_t* fids = fids_of(ids)
        cdef size_t count = ids.shape[0]
        cdef status_t status
        cdef uint8_t* flags = NULL
        if count == 0:
            return None
        if found is not None:
            flags = &found[0]
        buffer_init(&cold)
        # Beside a thread that pushes, to be given the GIL again takes longer than a short lookup.
        if lookup_is_short(self.shards, count) and shards_share_soon(self.shards):
            status = shards_lookup(
                self.shards, fids, count, &out[0, 0], flags, &cold, NULL, True)
            shards_leave(self.shards)
        else:
            with nogil:
                status = shards_lookup(
                    self.shards, fids, count, &out[0, 0], flags, &cold, NULL, False)
        raise_freeing(status, &cold, NULL, NULL)
        MKV_ADD64(&self.shards[0].counters.cold_hits, cold.count // sizeof(int64_t))
        return cold_positions(&cold)

    def lookup_pooled(
        self, const uint64_t[::1] ids, const int64_t[::1] offsets, int combiner,
        const float[::1] weights, float[:, ::1] out
    ):
        cdef Buffer cold
        cdef status_t status
        cdef size_t bags = offsets.shape[0] - 1
        cdef const fid_t* fids = fids_of(ids)
        cdef const float* factors = NULL
        if bags == 0:
            return None
        if weights is not None and weights.shape[0]:
            factors = &weights[0]
        buffer_init(&cold)
        with nogil:
            status = pool_bags(
                self.shards, fids, &offsets[0], bags, combiner, factors, &out[0, 0], &cold)
        raise_freeing(status, &cold, NULL, NULL)
        return cold_positions(&cold)

    def contains(self, const uint64_t[::1] ids, uint8_t[::1] out):
        cdef const fid_t* fids = fids_of(ids)
        cdef size_t count = ids.shape[0]
        if count == 0:
            return
        with nogil:
            shards_contain(self.shards, fids, count, &out[0])

    def state(self, const uint64_t[::1] ids, float[:, ::1] out):
        cdef Buffer cold
        cdef const fid_t* fids = fids_of(ids)
        cdef size_t count = ids.shape[0]
        cdef status_t status
        if count == 0 or out.shape[1] == 0:
            return None
        buffer_init(&cold)
        with nogil:
            status = shards_state(self.shards, fids, count, &out[0, 0], &cold)
        raise_freeing(status, &cold, NULL, NULL)
        return cold_positions(&cold)

    def timestamps(self, const uint64_t[::1] ids, int64_t[::1] out):
        cdef const fid_t* fids = fids_of(ids)
        cdef size_t count = ids.shape[0]
        if count:
            with nogil:
                shards_timestamps(self.shards, fids, count, &out[0])

    # --- changes -----------------------------------------------------------------------------

    def pull(
        self, const uint64_t[::1] ids, float[:, ::1] out, double now, bint may_insert
    ):
        cdef Buffer inserted
        cdef const fid_t* fids = fids_of(ids)
        cdef size_t count = ids.shape[0]
        cdef unix_s_t now_s = whole_seconds(now)
        cdef status_t status
        buffer_init(&inserted)
        if count == 0:
            return take_fids(&inserted)
        with nogil:
            self.barrier.enter()
            status = shards_pull(
                self.shards, fids, count, &out[0, 0], now_s, may_insert, &inserted)
            if status != STATUS_OK:
                shards_forget(self.shards, &inserted)
            self.barrier.leave()
        raise_status(status)
        fids_made = take_fids(&inserted)
        if self.inserted is not None:
            self.inserted = fids_made
        return fids_made

    def insert(self, const uint64_t[::1] ids, double now):
        cdef Batch batch
        cdef size_t shard
        cdef unix_s_t now_s = whole_seconds(now)
        cdef status_t status = STATUS_OK
        batch_of(&batch, ids)
        with nogil:
            self.barrier.enter()
            for shard in range(SHARDS):
                status |= shard_insert(&self.shards[shard], &batch, shard, now_s)
            self.barrier.leave()
            batch_destroy(&batch)
        raise_status(status)

    def push(self, const uint64_t[::1] ids, const float[:, ::1] gradients, double now):
        cdef Change change
        cdef unix_s_t now_s = whole_seconds(now)
        cdef status_t status
        if ids.shape[0] == 0:
            return
        change_set(
            &change, self.shards, fids_of(ids), &gradients[0, 0], ids.shape[0], False)
        with nogil:
            status = change_check(&change)
            if status == STATUS_OK:
                status = change_create(&change)
            if status == STATUS_OK:
                self.barrier.enter()
                status = change_begin(&change, now_s)
                if status == STATUS_OK:
                    change_run(&change)
                self.barrier.leave()
                change_destroy(&change)
        raise_status(status)

    def upsert(self, const uint64_t[::1] ids, const float[:, ::1] rows, double now):
        cdef Change change
        cdef unix_s_t now_s = whole_seconds(now)
        cdef status_t status
        if ids.shape[0] == 0:
            return
        change_set(&change, self.shards, fids_of(ids), &rows[0, 0], ids.shape[0], True)
        with nogil:
            status = change_check(&change)
            if status == STATUS_OK:
                status = change_create(&change)
            if status == STATUS_OK:
                self.barrier.enter()
                # In one pass: rows that are absent are made on the way.
                status = shards_promise(self.shards, &change.batch)
                if status == STATUS_OK:
                    status = shards_upsert(
                        self.shards, &change.batch, change.values, now_s, &change.left)
                self.barrier.leave()
                change_destroy(&change)
        raise_status(status)

    def remove(self, const uint64_t[::1] ids):
        cdef Batch batch
        cdef size_t shard
        cdef uint64_t removed = 0
        cdef status_t status = STATUS_OK
        batch_of(&batch, ids)
        with nogil:
            self.barrier.enter()
            status = shards_promise(self.shards, &batch)
            if status == STATUS_OK:
                for shard in range(SHARDS):
                    shard_remove(&self.shards[shard], &batch, shard, &removed)
            self.barrier.leave()
            batch_destroy(&batch)
        raise_status(status)
        return removed

    def check(self):
        """Check every invariant; what does not hold, in words."""
        return core_problems(self)

    # --- the gate ----------------------------------------------------------------------------

    def sightings(self, bint take):
        cdef size_t i
        cdef Shard* shard
        parts = []
        for i in range(SHARDS):
            shard = &self.shards[i]
            with nogil:
                lock_alone(&shard.lock)
            parts.append(buffer_bytes(&shard.sightings))
            if take:
                buffer_free(&shard.sightings)
            lock_leave(&shard.lock)
        return join_parts(parts)

    def take_sightings(self):
        cdef size_t i
        parts = []
        for i in range(SHARDS):
            with nogil:
                lock_alone(&self.shards[i].lock)
            parts.append(take_bytes(&self.shards[i].sightings))
            lock_leave(&self.shards[i].lock)
        return parts

    def see(self, bytes data, bint pending):
        parts = split_parts(data)
        cdef const uint8_t[::1] runs
        cdef const uint8_t* first
        cdef size_t size
        cdef size_t i
        cdef status_t status
        for i in range(SHARDS):
            if len(parts[i]) == 0:
                continue
            runs = parts[i]
            first = &runs[0]
            size = runs.shape[0]
            with nogil:
                status = shard_see(&self.shards[i], first, size, pending)
            raise_status(status)

    def check_sightings(self, bytes data):
        for part in split_parts(data):
            at = 0
            while at < len(part):
                at += 16 + 8 * int.from_bytes(part[at + 8:at + 16], "little")
            if at != len(part):
                raise ValueError("sightings of a gate end in the middle of a run")

    def gate_state(self):
        cdef size_t i
        cdef uint8_t[::1] out
        if not self.policy.is_gated:
            return b""
        self.lock_all()
        try:
            parts = []
            for i in range(SHARDS):
                packed = bytearray(sketch_packed_bytes(&self.shards[i].sketch))
                out = packed
                sketch_pack(&self.shards[i].sketch, &out[0])
                parts.append(bytes(packed))
        finally:
            self.unlock_all()
        return join_parts(parts)

    def gate_load(self, bytes data, bint add):
        cdef const uint8_t[::1] packed
        cdef size_t i
        cdef status_t status = STATUS_OK
        if not data or not self.policy.is_gated:
            return
        parts = split_parts(data)
        self.lock_all()
        try:
            for i in range(SHARDS):
                packed = parts[i]
                status |= sketch_unpack(
                    &self.shards[i].sketch, &packed[0], packed.shape[0], add)
        finally:
            self.unlock_all()
        raise_status(status)


cdef bytes buffer_bytes(const Buffer* buffer):
    return bytes(<uint8_t[:buffer.count]>buffer.data) if buffer.count else b""


cdef list split_parts(bytes data):
    parts = []
    view = memoryview(data)
    for _ in range(SHARDS):
        if len(view) < 8:
            raise ValueError("opaque bytes of a gate end before those of every shard")
        size = int.from_bytes(view[:8], "little")
        if size > len(view) - 8:
            raise ValueError("opaque bytes of a gate name a length beyond their end")
        parts.append(view[8:8 + size])
        view = view[8 + size:]
    if len(view):
        raise ValueError("opaque bytes of a gate go on behind those of every shard")
    return parts

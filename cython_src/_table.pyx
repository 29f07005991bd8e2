"""TableCore, the door between the planes: arrays in and out, the GIL released in between.

Arguments were checked above, in table.py. Ids are split by shard; shards are worked one after the
other, each under its lock. Positions of rows that lie in overflow go back to the caller, who reads
them there.
"""

import numpy as np

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from monolith_kv._admission cimport shard_pull, shard_see
from monolith_kv._batch cimport (
    Batch,
    Sums,
    Unique,
    batch_create,
    batch_destroy,
    sums_create,
    sums_destroy,
    unique_create,
    unique_destroy,
)
from monolith_kv._buffer cimport Buffer, buffer_free, buffer_init
from monolith_kv._codec cimport load_le64, store_le64
from monolith_kv._core cimport (
    Core,
    batch_of,
    fids_of,
    raise_status,
    take_bytes,
    take_fids,
)
from monolith_kv._expiry cimport (
    shard_expire,
    shard_expired,
    shard_shrink,
    shard_shrink_begin,
    shard_shrink_end,
)
from monolith_kv._hashing cimport SHARDS, hash_shard
from monolith_kv._pooling cimport pool_bags
from monolith_kv._read cimport shard_contains, shard_lookup, shard_state, shard_timestamps
from monolith_kv._shard cimport Shard, pthread_mutex_lock, pthread_mutex_unlock
from monolith_kv._sketch cimport sketch_pack, sketch_packed_bytes, sketch_unpack
from monolith_kv._tier cimport (
    shard_apply,
    shard_apply_removals,
    shard_cold,
    shard_coldest,
    shard_evict,
    shard_pack,
    shard_promote,
    shard_walk,
)
from monolith_kv._types cimport (
    STATUS_BAD_DATA,
    STATUS_OK,
    STATUS_OUT_OF_MEMORY,
    fid_t,
    status_t,
    unix_s_t,
)
from monolith_kv._view cimport (
    shard_seal_abort,
    shard_seal_claim,
    shard_seal_end,
    shard_seal_flip,
    shard_seal_read,
    shard_seal_saved,
    shard_snapshot_claim,
    shard_snapshot_end,
    shard_snapshot_flip,
    shard_snapshot_read,
    shard_touch,
)
from monolith_kv._write cimport shard_insert, shard_push, shard_remove, shard_upsert

from monolith_kv._core import Barrier

__all__ = ["Barrier", "TableCore"]

cdef extern from "<math.h>" nogil:
    double floor(double value)


cdef inline unix_s_t whole_seconds(double now) noexcept nogil:
    # Beyond what a row's header holds it makes no difference.
    if not now > -1e15:
        return -1000000000000000
    return <unix_s_t>floor(now) if now < 1e15 else 1000000000000000


cdef object cold_positions(Buffer* cold):
    if cold.count == 0:
        buffer_free(cold)
        return None
    return take_bytes(cold).view(np.int64)


cdef class TableCore(Core):
    """One table's rows. See monolith_kv/_table.pyi for what each method takes and gives."""

    # --- reads -------------------------------------------------------------------------------

    def lookup(self, const uint64_t[::1] ids, float[:, ::1] out, uint8_t[::1] found=None):
        cdef Batch batch
        cdef Buffer cold
        cdef size_t shard
        cdef status_t status = STATUS_OK
        cdef uint8_t* flags = NULL
        if ids.shape[0] == 0:
            return None
        if found is not None:
            flags = &found[0]
        batch_of(&batch, ids)
        buffer_init(&cold)
        with nogil:
            for shard in range(SHARDS):
                status |= shard_lookup(
                    &self.shards[shard], &batch, shard, &out[0, 0], flags, &cold)
            batch_destroy(&batch)
        raise_status(status)
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
        raise_status(status)
        return cold_positions(&cold)

    def contains(self, const uint64_t[::1] ids, uint8_t[::1] out):
        cdef Batch batch
        cdef size_t shard
        if ids.shape[0] == 0:
            return
        batch_of(&batch, ids)
        with nogil:
            for shard in range(SHARDS):
                shard_contains(&self.shards[shard], &batch, shard, &out[0])
            batch_destroy(&batch)

    def state(self, const uint64_t[::1] ids, float[:, ::1] out):
        cdef Batch batch
        cdef Buffer cold
        cdef size_t shard
        cdef status_t status = STATUS_OK
        if ids.shape[0] == 0 or out.shape[1] == 0:
            return None
        batch_of(&batch, ids)
        buffer_init(&cold)
        with nogil:
            for shard in range(SHARDS):
                status |= shard_state(&self.shards[shard], &batch, shard, &out[0, 0], &cold)
            batch_destroy(&batch)
        raise_status(status)
        return cold_positions(&cold)

    def timestamps(self, const uint64_t[::1] ids, int64_t[::1] out):
        cdef Batch batch
        cdef Buffer cold
        cdef size_t shard
        cdef status_t status = STATUS_OK
        if ids.shape[0] == 0:
            return None
        batch_of(&batch, ids)
        buffer_init(&cold)
        with nogil:
            for shard in range(SHARDS):
                status |= shard_timestamps(&self.shards[shard], &batch, shard, &out[0], &cold)
            batch_destroy(&batch)
        raise_status(status)
        return cold_positions(&cold)

    def cold(self, const uint64_t[::1] ids):
        cdef Batch batch
        cdef Buffer cold
        cdef size_t shard
        cdef status_t status = STATUS_OK
        buffer_init(&cold)
        batch_of(&batch, ids)
        with nogil:
            for shard in range(SHARDS):
                status |= shard_cold(&self.shards[shard], &batch, shard, &cold)
            batch_destroy(&batch)
        raise_status(status)
        return np.unique(take_fids(&cold))

    # --- changes -----------------------------------------------------------------------------

    def pull(
        self, const uint64_t[::1] ids, float[:, ::1] out, double now, bint may_insert
    ):
        cdef Batch batch
        cdef Buffer inserted
        cdef size_t shard
        cdef unix_s_t now_s = whole_seconds(now)
        cdef status_t status = STATUS_OK
        cdef status_t worst = STATUS_OK
        buffer_init(&inserted)
        if ids.shape[0] == 0:
            return take_fids(&inserted)
        batch_of(&batch, ids)
        with nogil:
            self.barrier.enter()
            for shard in range(SHARDS):
                status = shard_pull(
                    &self.shards[shard], &batch, shard, &out[0, 0], now_s, may_insert,
                    &inserted)
                worst = status if status != STATUS_OK else worst
            self.barrier.leave()
            batch_destroy(&batch)
        if worst != STATUS_OK:
            buffer_free(&inserted)
        raise_status(worst)
        return take_fids(&inserted)

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
        self.sum_and_push(ids, gradients, whole_seconds(now), True)

    def check_push(self, const uint64_t[::1] ids, const float[:, ::1] gradients):
        self.sum_and_push(ids, gradients, 0, False)

    cdef int sum_and_push(
        self, const uint64_t[::1] ids, const float[:, ::1] gradients, unix_s_t now_s, bint is_real
    ) except -1:
        cdef Batch batch
        cdef Unique unique
        cdef Sums sums
        cdef size_t shard
        cdef size_t count = ids.shape[0]
        cdef const fid_t* fids = fids_of(ids)
        cdef status_t status
        if count == 0:
            return 0
        with nogil:
            status = unique_create(&unique, fids, count)
            if status == STATUS_OK:
                status = sums_create(
                    &sums, &unique, &gradients[0, 0], count, self.policy.dim)
                if status == STATUS_OK:
                    if is_real:
                        status = batch_create(&batch, unique.fids, unique.count)
                    if is_real and status == STATUS_OK:
                        self.barrier.enter()
                        for shard in range(SHARDS):
                            status |= shard_push(
                                &self.shards[shard], &batch, shard, sums.gradients, now_s)
                        self.barrier.leave()
                        batch_destroy(&batch)
                    sums_destroy(&sums)
                unique_destroy(&unique)
        return raise_status(status)

    def upsert(self, const uint64_t[::1] ids, const float[:, ::1] rows, double now):
        cdef Batch batch
        cdef size_t shard
        cdef unix_s_t now_s = whole_seconds(now)
        cdef status_t status = STATUS_OK
        if ids.shape[0] == 0:
            return
        batch_of(&batch, ids)
        with nogil:
            self.barrier.enter()
            for shard in range(SHARDS):
                status |= shard_upsert(
                    &self.shards[shard], &batch, shard, &rows[0, 0], now_s)
            self.barrier.leave()
            batch_destroy(&batch)
        raise_status(status)

    def remove(self, const uint64_t[::1] ids):
        cdef Batch batch
        cdef size_t shard
        cdef uint64_t removed = 0
        cdef status_t status = STATUS_OK
        batch_of(&batch, ids)
        with nogil:
            self.barrier.enter()
            for shard in range(SHARDS):
                status |= shard_remove(&self.shards[shard], &batch, shard, &removed)
            self.barrier.leave()
            batch_destroy(&batch)
        raise_status(status)
        return removed

    # --- records -----------------------------------------------------------------------------

    cdef object record_fids(self, const uint8_t[::1] records):
        """The ids of an array of records."""
        cdef size_t size = self.policy.record_bytes
        if records.shape[0] % size:
            raise ValueError(f"{records.shape[0]} bytes are no whole number of records of {size}")
        return np.ascontiguousarray(
            np.asarray(records).reshape(-1, size)[:, :8]).view(np.uint64).reshape(-1)

    def apply(self, const uint8_t[::1] records, const uint64_t[::1] removed):
        cdef Batch batch
        cdef size_t shard
        cdef status_t status = STATUS_OK
        fids = self.record_fids(records)
        if len(fids):
            batch_of(&batch, fids)
            with nogil:
                self.barrier.enter()
                for shard in range(SHARDS):
                    status |= shard_apply(&self.shards[shard], &batch, shard, &records[0])
                self.barrier.leave()
                batch_destroy(&batch)
            raise_status(status)
        batch_of(&batch, removed)
        with nogil:
            self.barrier.enter()
            for shard in range(SHARDS):
                status |= shard_apply_removals(&self.shards[shard], &batch, shard)
            self.barrier.leave()
            batch_destroy(&batch)
        raise_status(status)

    def pack(self, const uint64_t[::1] ids):
        cdef Batch batch
        cdef Buffer records, cold
        cdef size_t shard
        cdef status_t status = STATUS_OK
        buffer_init(&records)
        buffer_init(&cold)
        batch_of(&batch, ids)
        with nogil:
            for shard in range(SHARDS):
                status |= shard_pack(&self.shards[shard], &batch, shard, &records, &cold)
            batch_destroy(&batch)
        raise_status(status)
        return take_bytes(&records), take_fids(&cold)

    def promote(self, const uint8_t[::1] records):
        cdef Batch batch
        cdef size_t shard
        cdef status_t status = STATUS_OK
        fids = self.record_fids(records)
        if len(fids) == 0:
            return
        batch_of(&batch, fids)
        with nogil:
            for shard in range(SHARDS):
                status |= shard_promote(&self.shards[shard], &batch, shard, &records[0])
            batch_destroy(&batch)
        raise_status(status)

    def evict(self, const uint64_t[::1] ids):
        cdef Batch batch
        cdef size_t shard
        cdef uint64_t evicted = 0
        batch_of(&batch, ids)
        with nogil:
            for shard in range(SHARDS):
                evicted += shard_evict(&self.shards[shard], &batch, shard)
            batch_destroy(&batch)
        return evicted * (self.policy.record_bytes - 8)

    def coldest(self, count, bint dirty):
        cdef Buffer fids
        cdef size_t shard
        cdef size_t part = (count + SHARDS - 1) // SHARDS
        cdef status_t status = STATUS_OK
        buffer_init(&fids)
        self.lock_all()
        self.policy.counts_heat = True
        self.unlock_all()
        with nogil:
            for shard in range(SHARDS):
                status |= shard_coldest(&self.shards[shard], part, dirty, &fids)
        raise_status(status)
        return np.unique(take_fids(&fids))

    def walk(self, cursor):
        cdef Buffer fids
        cdef uint64_t position = cursor
        cdef uint64_t next_position = 0
        cdef status_t status
        buffer_init(&fids)
        with nogil:
            status = shard_walk(
                &self.shards[hash_shard(position)], position, &fids, &next_position)
        raise_status(status)
        return take_fids(&fids), next_position if next_position else -1

    # --- expiry ------------------------------------------------------------------------------

    def expired(self, cursor, double now):
        cdef Buffer fids, cold
        cdef uint64_t position = cursor
        cdef uint64_t next_position = 0
        cdef unix_s_t now_s = whole_seconds(now)
        cdef status_t status
        buffer_init(&fids)
        buffer_init(&cold)
        with nogil:
            status = shard_expired(
                &self.shards[hash_shard(position)], position, now_s, &fids, &cold,
                &next_position)
        raise_status(status)
        return take_fids(&fids), take_fids(&cold), next_position if next_position else -1

    def expire(self, const uint64_t[::1] ids, double now):
        cdef Batch batch
        cdef Buffer removed
        cdef size_t shard
        cdef unix_s_t now_s = whole_seconds(now)
        cdef status_t status = STATUS_OK
        buffer_init(&removed)
        batch_of(&batch, ids)
        with nogil:
            self.barrier.enter()
            for shard in range(SHARDS):
                status |= shard_expire(&self.shards[shard], &batch, shard, now_s, &removed)
            self.barrier.leave()
            batch_destroy(&batch)
        raise_status(status)
        return take_fids(&removed)

    def shrink(self, cursor):
        cdef uint64_t position = cursor
        cdef uint64_t next_position = 0
        cdef size_t shard = hash_shard(position)
        cdef bint is_first = position << 3 == 0
        cdef status_t status
        before = self.memory()
        with nogil:
            if is_first:
                shard_shrink_begin(&self.shards[shard])
            status = shard_shrink(&self.shards[shard], position, &next_position)
            if hash_shard(next_position) != shard or next_position == 0:
                shard_shrink_end(&self.shards[shard])
        raise_status(status)
        after = self.memory()
        freed = sum(before[kind] - after[kind] for kind in ("rows", "index"))
        return max(freed, 0), next_position if next_position else -1

    # --- views -------------------------------------------------------------------------------

    def seal_flip(self):
        cdef size_t shard
        with nogil:
            for shard in range(SHARDS):
                shard_seal_flip(&self.shards[shard])

    def seal_fids(self):
        cdef size_t shard
        cdef Buffer* fids
        parts = []
        for shard in range(SHARDS):
            fids = &self.shards[shard].seal_fids
            if fids.count:
                parts.append(np.array(<uint64_t[:fids.count // sizeof(fid_t)]><uint64_t*>fids.data))
        return np.unique(np.concatenate(parts)) if parts else np.empty(0, np.uint64)

    def seal_read(self, const uint64_t[::1] ids):
        cdef Batch batch
        cdef Buffer records, absent, cold
        cdef size_t shard
        cdef status_t status = STATUS_OK
        buffer_init(&records)
        buffer_init(&absent)
        buffer_init(&cold)
        batch_of(&batch, ids)
        with nogil:
            for shard in range(SHARDS):
                status |= shard_seal_read(
                    &self.shards[shard], &batch, shard, &records, &absent, &cold)
            batch_destroy(&batch)
        raise_status(status)
        return take_bytes(&records), take_fids(&absent), take_fids(&cold)

    def seal_claim(self, const uint8_t[::1] records):
        return self.claim(records, True)

    def snapshot_claim(self, const uint8_t[::1] records):
        return self.claim(records, False)

    cdef object claim(self, const uint8_t[::1] records, bint is_seal):
        cdef Batch batch
        cdef size_t shard
        fids = self.record_fids(records)
        wanted = np.zeros(len(fids), np.uint8)
        cdef uint8_t[::1] is_wanted = wanted
        if len(fids) == 0:
            return np.asarray(records)
        batch_of(&batch, fids)
        with nogil:
            for shard in range(SHARDS):
                if is_seal:
                    shard_seal_claim(&self.shards[shard], &batch, shard, &is_wanted[0])
                else:
                    shard_snapshot_claim(&self.shards[shard], &batch, shard, &is_wanted[0])
            batch_destroy(&batch)
        rows = np.asarray(records).reshape(len(fids), self.policy.record_bytes)
        return np.ascontiguousarray(rows[wanted.view(np.bool_)]).reshape(-1)

    def seal_saved(self):
        cdef Buffer saved
        cdef size_t shard
        cdef status_t status = STATUS_OK
        buffer_init(&saved)
        with nogil:
            for shard in range(SHARDS):
                status |= shard_seal_saved(&self.shards[shard], &saved)
        raise_status(status)
        return take_bytes(&saved)

    def seal_end(self):
        cdef Buffer saved
        cdef size_t shard
        parts = []
        for shard in range(SHARDS):
            with nogil:
                shard_seal_end(&self.shards[shard], &saved)
            parts.append(take_bytes(&saved))
        return np.concatenate(parts)

    def seal_abort(self):
        cdef size_t shard
        cdef status_t status = STATUS_OK
        with nogil:
            self.barrier.enter()
            for shard in range(SHARDS):
                status |= shard_seal_abort(&self.shards[shard])
            self.barrier.leave()
        raise_status(status)

    def touched_fids(self):
        cdef Shard* shard
        cdef size_t i
        parts = []
        self.lock_all()
        try:
            for i in range(SHARDS):
                shard = &self.shards[i]
                parts.append(np.frombuffer(PyBytes_of(&shard.touched), np.uint64))
        finally:
            self.unlock_all()
        return np.unique(np.concatenate(parts))

    def touch(self, const uint64_t[::1] ids):
        cdef Batch batch
        cdef size_t shard
        cdef status_t status = STATUS_OK
        batch_of(&batch, ids)
        with nogil:
            self.barrier.enter()
            for shard in range(SHARDS):
                status |= shard_touch(&self.shards[shard], &batch, shard)
            self.barrier.leave()
            batch_destroy(&batch)
        raise_status(status)

    def snapshot_flip(self):
        cdef size_t shard
        with nogil:
            for shard in range(SHARDS):
                shard_snapshot_flip(&self.shards[shard])

    def snapshot_read(self, cursor):
        cdef Buffer records, cold
        cdef uint64_t position = cursor
        cdef uint64_t next_position = 0
        cdef status_t status
        buffer_init(&records)
        buffer_init(&cold)
        with nogil:
            status = shard_snapshot_read(
                &self.shards[hash_shard(position)], position, &records, &cold, &next_position)
        raise_status(status)
        return take_bytes(&records), take_fids(&cold), next_position if next_position else -1

    def snapshot_end(self):
        cdef Buffer saved
        cdef size_t shard
        parts = []
        for shard in range(SHARDS):
            with nogil:
                shard_snapshot_end(&self.shards[shard], &saved)
            parts.append(take_bytes(&saved))
        return np.concatenate(parts)

    # --- the gate ----------------------------------------------------------------------------

    def sightings(self, bint take):
        cdef size_t i
        cdef Shard* shard
        parts = []
        for i in range(SHARDS):
            shard = &self.shards[i]
            with nogil:
                pthread_mutex_lock(&shard.lock)
            parts.append(PyBytes_of(&shard.sightings))
            if take:
                buffer_free(&shard.sightings)
            pthread_mutex_unlock(&shard.lock)
        return join_parts(parts)

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

    def sightings_return(self, bytes data):
        newer = split_parts(self.sightings(True))
        cdef list parts = split_parts(data)
        merged = join_parts([bytes(a) + bytes(b) for a, b in zip(parts, newer)])
        self.sightings_put(merged)

    cdef int sightings_put(self, bytes data) except -1:
        """Set the pending sightings without counting them again."""
        cdef bint is_gated = self.policy.is_gated
        self.policy.is_gated = False
        try:
            self.see(data, True)
        finally:
            self.policy.is_gated = is_gated
        return 0

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


cdef bytes PyBytes_of(const Buffer* buffer):
    return bytes(<uint8_t[:buffer.count]>buffer.data) if buffer.count else b""


cdef bytes join_parts(parts):
    """The shards' bytes, each behind its length as u64."""
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts)


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

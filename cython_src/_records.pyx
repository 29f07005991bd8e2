"""Rows as arrays of records: load, pack, evict, promote, walk, expire. See _table.pyi."""

import numpy as np

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from monolith_kv._batch cimport Batch, batch_destroy
from monolith_kv._buffer cimport Buffer, buffer_free, buffer_init, buffer_reserve
from monolith_kv._codec cimport record_fid
from monolith_kv._core cimport (
    Core,
    batch_of,
    raise_freeing,
    raise_status,
    take_bytes,
    take_fids,
    whole_seconds,
)
from monolith_kv._cuckoo cimport BUCKET_CELLS, Bucket, cuckoo_expect
from monolith_kv._expiry cimport (
    shard_expire,
    shard_expired,
    shard_shrink,
    shard_shrink_begin,
    shard_shrink_end,
)
from monolith_kv._hashing cimport SHARD_BITS, SHARDS, hash_fid, hash_shard
from monolith_kv._lock cimport lock_alone, lock_leave
from monolith_kv._pages cimport PIECE_BYTES, pages_expect
from monolith_kv._shard cimport shards_promise
from monolith_kv._tier cimport (
    shard_apply,
    shard_apply_removals,
    shard_cold,
    shard_coldest,
    shard_evict,
    shard_pack,
    shard_promote,
    shard_put_back,
    shard_reserve,
    shard_walk,
)
from monolith_kv._types cimport STATUS_OK, fid_t, status_t, unix_s_t

from monolith_kv.fids import distinct


cdef class Records(Core):
    """A table's rows as records."""

    cdef object record_fids(self, const uint8_t[::1] records):
        """The ids of an array of records."""
        cdef size_t size = self.policy.record_bytes
        cdef size_t count = records.shape[0] // size
        cdef size_t i
        cdef uint64_t[::1] out
        if records.shape[0] % size:
            raise ValueError(f"{len(records)} bytes are no whole number of records of {size}")
        fids = np.empty(count, np.uint64)
        out = fids
        with nogil:
            for i in range(count):
                memcpy(&out[i], &records[i * size], sizeof(uint64_t))
        return fids

    def expect(self, uint64_t rows):
        cdef size_t i
        cdef size_t index_bytes = sizeof(Bucket) // BUCKET_CELLS
        cdef status_t status = STATUS_OK
        with nogil:
            pages_expect(
                &self.pages,
                rows // self.shards[0].arena.places + rows * index_bytes // PIECE_BYTES)
            for i in range(SHARDS):
                lock_alone(&self.shards[i].lock)
                status |= cuckoo_expect(&self.shards[i].index, rows // SHARDS)
                lock_leave(&self.shards[i].lock)
        raise_status(status)

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

    def reserve(self, const uint64_t[::1] ids):
        cdef Batch batch
        cdef size_t shard
        cdef status_t status = STATUS_OK
        batch_of(&batch, ids)
        with nogil:
            for shard in range(SHARDS):
                status |= shard_reserve(&self.shards[shard], &batch, shard)
            batch_destroy(&batch)
        raise_status(status)

    def put_back(self, const uint8_t[::1] records, const uint64_t[::1] absent):
        cdef size_t size = self.policy.record_bytes
        cdef size_t i
        cdef uint64_t hashed
        cdef fid_t fid
        with nogil:
            self.barrier.enter()
            for i in range(records.shape[0] // size):
                fid = record_fid(&records[i * size])
                hashed = hash_fid(fid)
                shard_put_back(&self.shards[hash_shard(hashed)], fid, hashed, &records[i * size])
            for i in range(absent.shape[0]):
                hashed = hash_fid(absent[i])
                shard_put_back(&self.shards[hash_shard(hashed)], absent[i], hashed, NULL)
            self.barrier.leave()

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
        raise_freeing(status, &records, &cold, NULL)
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
        raise_freeing(status, &cold, NULL, NULL)
        return distinct(take_fids(&cold))

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
        raise_freeing(status, &fids, NULL, NULL)
        return distinct(take_fids(&fids))

    def walk(self, cursor):
        cdef Buffer fids
        cdef uint64_t position = cursor
        cdef uint64_t next_position = 0
        cdef status_t status
        buffer_init(&fids)
        with nogil:
            status = shard_walk(
                &self.shards[hash_shard(position)], position, &fids, &next_position)
        raise_freeing(status, &fids, NULL, NULL)
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
        raise_freeing(status, &fids, &cold, NULL)
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
            status = buffer_reserve(&removed, batch.starts[SHARDS] * sizeof(uint64_t))
            if status == STATUS_OK:
                status = shards_promise(self.shards, &batch)
            if status == STATUS_OK:
                for shard in range(SHARDS):
                    shard_expire(&self.shards[shard], &batch, shard, now_s, &removed)
            else:
                buffer_free(&removed)
            self.barrier.leave()
            batch_destroy(&batch)
        raise_status(status)
        return take_fids(&removed)

    def shrink(self, cursor, excess=0):
        cdef uint64_t position = cursor
        cdef uint32_t wanted = -(-excess // (SHARDS * PIECE_BYTES))
        cdef uint64_t next_position = 0
        cdef size_t shard = hash_shard(position)
        cdef bint is_first = position << SHARD_BITS == 0
        cdef status_t status
        before = self.memory()
        with nogil:
            if is_first:
                shard_shrink_begin(&self.shards[shard], wanted)
            status = shard_shrink(&self.shards[shard], position, &next_position)
            if hash_shard(next_position) != shard or next_position == 0:
                shard_shrink_end(&self.shards[shard])
        raise_status(status)
        after = self.memory()
        freed = sum(before[kind] - after[kind] for kind in ("rows", "index"))
        return max(freed, 0), next_position if next_position else -1

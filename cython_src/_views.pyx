"""Views of one instant: what a seal and a snapshot read, while calls go on. See _table.pyi."""

import numpy as np

from libc.stdint cimport uint8_t, uint64_t

from monolith_kv._batch cimport Batch, batch_destroy
from monolith_kv._buffer cimport Buffer, buffer_init
from monolith_kv._codec cimport store_le64
from monolith_kv._core cimport (
    batch_of,
    raise_freeing,
    raise_status,
    take_bytes,
    take_fids,
)
from monolith_kv._digest cimport RowDigest, digest_add
from monolith_kv._hashing cimport SHARDS, hash_shard
from monolith_kv._records cimport Records
from monolith_kv._shard cimport Shard
from monolith_kv._sketch cimport sketch_frozen_bytes
from monolith_kv._types cimport STATUS_OK, fid_t, status_t
from monolith_kv._view cimport (
    shard_saved,
    shard_seal_abort,
    shard_seal_claim,
    shard_seal_end,
    shard_seal_flip,
    shard_seal_read,
    shard_snapshot_claim,
    shard_snapshot_end,
    shard_snapshot_flip,
    shard_snapshot_gate,
    shard_snapshot_read,
    shard_snapshot_touched,
    shard_touch,
)

from monolith_kv.fids import distinct


cdef object fids_in(const Buffer* fids):
    """A copy of a list of fids."""
    cdef size_t count = fids.count // sizeof(fid_t)
    if count == 0:
        return np.empty(0, np.uint64)
    return np.array(<uint64_t[:count]><uint64_t*>fids.data)


cdef void lend(Buffer* records, uint8_t[::1] out) noexcept:
    """An array's memory as a buffer that must not grow: nothing is mapped anew under a lock."""
    buffer_init(records)
    if out.shape[0]:
        records.data = &out[0]
        records.capacity = out.shape[0]


cdef class Views(Records):
    """A table's rows as they were at one instant."""

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
            parts.append(fids_in(fids))
        return distinct(np.concatenate(parts))

    def seal_read(self, const uint64_t[::1] ids, uint8_t[::1] out):
        cdef Batch batch
        cdef Buffer records, absent, cold
        cdef size_t shard
        cdef status_t status = STATUS_OK
        lend(&records, out)
        if records.capacity < ids.shape[0] * self.policy.record_bytes:
            raise ValueError(f"{out.shape[0]} bytes are no room for {ids.shape[0]} records")
        buffer_init(&absent)
        buffer_init(&cold)
        batch_of(&batch, ids)
        with nogil:
            for shard in range(SHARDS):
                status |= shard_seal_read(
                    &self.shards[shard], &batch, shard, &records, &absent, &cold)
            batch_destroy(&batch)
        raise_freeing(status, &absent, &cold, NULL)
        return np.asarray(out)[:records.count], take_fids(&absent), take_fids(&cold)

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

    def saved(self, bint is_seal, uint8_t[::1] out):
        cdef Buffer records
        cdef size_t shard
        lend(&records, out)
        with nogil:
            for shard in range(SHARDS):
                records.count += shard_saved(
                    &self.shards[shard], is_seal, records.data + records.count,
                    records.capacity - records.count)
        return np.asarray(out)[:records.count]

    def seal_digest(self):
        cdef RowDigest total
        cdef size_t i
        total.low = total.high = 0
        for i in range(SHARDS):
            digest_add(&total, self.shards[i].seal_digest)
        return total.low, total.high

    def seal_end(self, size_t kept_bytes=0):
        cdef size_t shard
        with nogil:
            for shard in range(SHARDS):
                shard_seal_end(&self.shards[shard], kept_bytes // SHARDS)

    def seal_abort(self):
        cdef size_t shard
        with nogil:
            self.barrier.enter()
            for shard in range(SHARDS):
                shard_seal_abort(&self.shards[shard])
            self.barrier.leave()

    def touched_fids(self):
        cdef Shard* shard
        cdef size_t i
        parts = []
        self.lock_all()
        try:
            for i in range(SHARDS):
                shard = &self.shards[i]
                parts.append(fids_in(&shard.touched))
                # No delta has these before the seal that is under way is done.
                if shard.is_sealing:
                    parts.append(fids_in(&shard.seal_fids))
        finally:
            self.unlock_all()
        return np.concatenate(parts)

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
        cdef status_t status = STATUS_OK
        with nogil:
            for shard in range(SHARDS):
                if status == STATUS_OK:
                    status = shard_snapshot_flip(&self.shards[shard])
        if status != STATUS_OK:
            self.snapshot_end()
        raise_status(status)

    def snapshot_touched(self):
        cdef Buffer fids
        cdef size_t shard
        cdef status_t status = STATUS_OK
        buffer_init(&fids)
        with nogil:
            for shard in range(SHARDS):
                status |= shard_snapshot_touched(&self.shards[shard], &fids)
        raise_freeing(status, &fids, NULL, NULL)
        return take_fids(&fids)

    def snapshot_gate(self):
        # As join_parts puts them together, but one after the other: they are large.
        cdef size_t shard
        for shard in range(SHARDS):
            packed = self.frozen_gate(shard)
            if packed is not None:
                yield packed

    cdef object frozen_gate(self, size_t number):
        cdef Shard* shard = &self.shards[number]
        cdef uint8_t[::1] out
        cdef uint64_t size = sketch_frozen_bytes(&shard.sketch)
        if size == 0:
            return None
        out = packed = np.empty(size + 8, np.uint8)
        with nogil:
            store_le64(&out[0], size)
            shard_snapshot_gate(shard, &out[8])
        return packed

    def snapshot_digest(self):
        cdef RowDigest total
        cdef size_t i
        total.low = total.high = 0
        for i in range(SHARDS):
            digest_add(&total, self.shards[i].snapshot_digest)
        return total.low, total.high

    def snapshot_read(self, cursor, uint8_t[::1] out):
        cdef Buffer records, cold
        cdef uint64_t position = cursor
        cdef uint64_t next_position = 0
        cdef bint is_whole = False
        cdef status_t status
        lend(&records, out)
        if records.capacity < self.policy.record_bytes:
            raise ValueError(f"{out.shape[0]} bytes are no room for a record")
        buffer_init(&cold)
        with nogil:
            status = shard_snapshot_read(
                &self.shards[hash_shard(position)], position, &records, &cold, &next_position,
                &is_whole)
        raise_freeing(status, &cold, NULL, NULL)
        if is_whole:
            cursor = next_position if next_position else -1
        return np.asarray(out)[:records.count], take_fids(&cold), cursor

    def snapshot_end(self):
        cdef Buffer saved
        cdef size_t shard
        parts = []
        for shard in range(SHARDS):
            with nogil:
                shard_snapshot_end(&self.shards[shard], &saved)
            parts.append(take_bytes(&saved))
        return parts

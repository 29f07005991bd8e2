"""Rows as arrays of records: load, pack, evict, promote, walk, expire. See _table.pyi."""

import numpy as np

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from monolith_kv._batch cimport Batch, batch_destroy
from monolith_kv._buffer cimport Buffer, buffer_free, buffer_init, buffer_reserve
from monolith_kv._clock cimport shard_coldest
from monolith_kv._codec cimport RECORD_EMBEDDING, record_embedding, record_fid
from monolith_kv._core cimport (
    Core,
    batch_of,
    fids_of,
    raise_freeing,
    raise_status,
    take_bytes,
    take_fids,
    whole_seconds,
)
from monolith_kv._cuckoo cimport BUCKET_CELLS, Bucket, cuckoo_expect
from monolith_kv._digest cimport RowDigest, digest_add, digest_row
from monolith_kv._expiry cimport (
    shard_expire,
    shard_expired,
    shard_shrink,
    shard_shrink_begin,
    shard_shrink_end,
)
from monolith_kv._hashing cimport SHARD_BITS, SHARDS, hash_fid, hash_shard
from monolith_kv._lock cimport lock_alone, lock_leave, lock_shared
from monolith_kv._pages cimport PIECE_BYTES, pages_expect
from monolith_kv._rowfile cimport (
    ROWFILE_SUM_BYTES,
    RowFiles,
    RowTarget,
    rowfile_checksum,
    rowfiles_add,
    rowfiles_create,
    rowfiles_read,
    rowfiles_remove,
    rowfiles_wrote,
)
from monolith_kv._shard cimport MKV_LOAD64, shards_promise
from monolith_kv._tier cimport (
    shard_apply,
    shard_apply_removals,
    shard_cold_rows,
    shard_enter_cold,
    shard_evict,
    shard_pack,
    shard_promote,
    shard_put_back,
    shard_relocate,
    shard_reserve,
    shard_walk,
)
from monolith_kv._types cimport STATUS_OK, fid_t, row_t, status_t, unix_s_t

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

    def expect(self, uint64_t rows, uint64_t cold_rows=0):
        cdef size_t i
        cdef size_t index_bytes = sizeof(Bucket) // BUCKET_CELLS
        cdef uint64_t every = rows + cold_rows
        cdef status_t status = STATUS_OK
        with nogil:
            pages_expect(
                &self.pages,
                rows // self.shards[0].arena.places + every * index_bytes // PIECE_BYTES)
            for i in range(SHARDS):
                lock_alone(&self.shards[i].lock)
                status |= cuckoo_expect(&self.shards[i].index, every // SHARDS)
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

    def promote(self, const uint8_t[::1] records, const uint32_t[::1] rows=None):
        cdef Batch batch
        cdef size_t shard
        cdef const row_t* seen = NULL
        cdef status_t status = STATUS_OK
        fids = self.record_fids(records)
        if len(fids) == 0:
            return
        if rows is not None:
            seen = &rows[0]
        batch_of(&batch, fids)
        with nogil:
            for shard in range(SHARDS):
                status |= shard_promote(&self.shards[shard], &batch, shard, &records[0], seen)
            batch_destroy(&batch)
        raise_status(status)

    # --- overflow ----------------------------------------------------------------------------

    def begin_overflow(self, uint32_t place_bits):
        cdef RowFiles* files
        if self.policy.row_files == NULL:
            raise_status(rowfiles_create(&files, self.policy.record_bytes, place_bits))
            self.lock_all()
            self.policy.row_files = files
            self.unlock_all()

    def add_row_file(
        self, uint32_t number, int fd, uint32_t seed, uint64_t base, uint32_t places=0
    ):
        raise_status(rowfiles_add(self.policy.row_files, number, fd, seed, base, places))

    def wrote_places(self, uint32_t number, uint32_t places):
        rowfiles_wrote(self.policy.row_files, number, places)

    def remove_row_file(self, uint32_t number):
        cdef RowFiles* files = self.policy.row_files
        # Whoever reads is done after a batch; tried for only, readers that overlap would keep it.
        with nogil:
            lock_alone(&files.lock)
            rowfiles_remove(files, number)
            lock_leave(&files.lock)

    def close_row_file(self, uint32_t number):
        cdef RowFiles* files = self.policy.row_files
        with nogil:
            lock_alone(&files.lock)
            files.files[number].fd = -1
            lock_leave(&files.lock)

    def checksummed(self, const uint8_t[::1] records, uint32_t seed):
        cdef size_t size = self.policy.record_bytes
        cdef size_t count = records.shape[0] // size
        cdef uint8_t[:, ::1] out
        made = np.empty((count, size + ROWFILE_SUM_BYTES), np.uint8)
        out = made
        if count:
            with nogil:
                rowfile_checksum(&records[0], size, count, seed, &out[0, 0])
        return made

    def digest_of(self, const uint8_t[::1] records):
        cdef size_t size = self.policy.record_bytes
        cdef size_t i
        cdef RowDigest total
        total.low = total.high = 0
        with nogil:
            for i in range(records.shape[0] // size):
                digest_add(&total, digest_row(
                    record_fid(&records[i * size]),
                    <const float*>record_embedding(&records[i * size]), self.policy.dim))
        return total.low, total.high

    def enter_cold(
        self, const uint64_t[::1] ids, const int64_t[::1] times, uint32_t first, low, high
    ):
        cdef Batch batch
        cdef size_t shard
        cdef RowDigest digest
        cdef status_t status = STATUS_OK
        digest.low, digest.high = low, high
        if ids.shape[0] != times.shape[0]:
            raise ValueError(f"{len(ids)} ids have {len(times)} times")
        batch_of(&batch, ids)
        with nogil:
            for shard in range(SHARDS if ids.shape[0] else 0):
                status |= shard_enter_cold(&self.shards[shard], &batch, shard, &times[0], first)
            batch_destroy(&batch)
            # Which shard has it is no matter: what is asked for is the sum of all.
            lock_alone(&self.shards[0].lock)
            digest_add(&self.shards[0].digest, digest)
            lock_leave(&self.shards[0].lock)
        raise_status(status)

    def live_rows(self, uint32_t number):
        return MKV_LOAD64(&self.policy.row_files.files[number].live)

    def cold_rows_at(self, const uint64_t[::1] ids):
        cdef Batch batch
        cdef size_t shard
        cdef row_t[::1] rows
        found = np.zeros(ids.shape[0], np.uint32)
        rows = found
        batch_of(&batch, ids)
        with nogil:
            for shard in range(SHARDS if ids.shape[0] else 0):
                shard_cold_rows(&self.shards[shard], &batch, shard, &rows[0])
            batch_destroy(&batch)
        return found

    def read_cold(self, const uint64_t[::1] ids):
        cdef uint8_t[:, ::1] records
        cdef RowTarget target
        made = np.empty((ids.shape[0], self.policy.record_bytes), np.uint8)
        target.stride = target.bytes = self.policy.record_bytes
        target.begin = 0
        target.places = NULL
        if ids.shape[0]:
            records = made
            target.data = &records[0, 0]
        return made, self.read_rows(ids, &target)

    def fill_cold(
        self, const uint64_t[::1] ids, const int64_t[::1] places, float[:, ::1] out, bint is_state
    ):
        cdef RowTarget target
        cdef size_t floats = self.policy.state_floats if is_state else self.policy.dim
        target.begin = RECORD_EMBEDDING + (self.policy.dim * sizeof(float) if is_state else 0)
        target.stride = target.bytes = floats * sizeof(float)
        target.places = &places[0]
        target.data = <uint8_t*>&out[0, 0]
        return self.read_rows(ids, &target)

    cdef object read_rows(self, const uint64_t[::1] ids, const RowTarget* target):
        """Of each id what came of reading its record."""
        cdef Batch batch
        cdef size_t shard
        cdef RowFiles* files = self.policy.row_files
        cdef row_t[::1] rows
        cdef uint8_t[::1] outcomes
        cdef const fid_t* fids = fids_of(ids)
        cdef size_t count = ids.shape[0]
        cdef status_t status
        made = np.zeros(count, np.uint8)
        if files == NULL or count == 0:
            return made
        rows, outcomes = np.empty(count, np.uint32), made
        batch_of(&batch, ids)
        with nogil:
            lock_shared(&files.lock)
            for shard in range(SHARDS):
                shard_cold_rows(&self.shards[shard], &batch, shard, &rows[0])
            status = rowfiles_read(files, &rows[0], fids, count, target, &outcomes[0])
            lock_leave(&files.lock)
            batch_destroy(&batch)
        raise_status(status)
        return made

    def relocate(
        self, const uint64_t[::1] ids, const uint32_t[::1] rows, const uint32_t[::1] places
    ):
        cdef Batch batch
        cdef size_t shard
        batch_of(&batch, ids)
        with nogil:
            for shard in range(SHARDS if ids.shape[0] else 0):
                shard_relocate(&self.shards[shard], &batch, shard, &rows[0], &places[0])
            batch_destroy(&batch)

    def evict(self, const uint8_t[::1] records, const uint32_t[::1] places):
        cdef Batch batch
        cdef size_t shard
        fids = self.record_fids(records)
        if len(fids) == 0:
            return
        batch_of(&batch, fids)
        with nogil:
            for shard in range(SHARDS):
                shard_evict(&self.shards[shard], &batch, shard, &records[0], &places[0])
            batch_destroy(&batch)

    def cold(self, const uint64_t[::1] ids):
        return distinct(np.asarray(ids)[self.cold_rows_at(ids) != 0])

    def coldest(self, count, bint dirty):
        cdef Buffer fids
        cdef size_t shard
        cdef uint64_t resident[SHARDS]
        cdef uint64_t total = 0
        cdef size_t wanted = count
        cdef status_t status = STATUS_OK
        buffer_init(&fids)
        self.lock_all()
        self.policy.counts_heat = True
        self.unlock_all()
        with nogil:
            for shard in range(SHARDS):
                resident[shard] = (
                    MKV_LOAD64(&self.shards[shard].index.rows)
                    - MKV_LOAD64(&self.shards[shard].cold_rows))
                total += resident[shard]
            # Of each its share: rows that are loaded in the order of a snapshot lie in one shard.
            for shard in range(SHARDS if total else 0):
                status |= shard_coldest(
                    &self.shards[shard], (wanted * resident[shard] + total - 1) // total, dirty,
                    &fids)
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

"""Rows in and out of a shard as records: load, pack, move to overflow and back, walk.

`number` is the shard's in the batch, records are by position in the batch.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from monolith_kv._batch cimport Batch
from monolith_kv._buffer cimport Buffer
from monolith_kv._shard cimport Shard
from monolith_kv._types cimport fid_t, row_t, status_t

# Set whole rows as they are in the records; marks nothing as touched.
cdef status_t shard_apply(
    Shard* shard, const Batch* batch, size_t number, const uint8_t* records) noexcept nogil
# Remove without marking anything as touched.
cdef status_t shard_apply_removals(
    Shard* shard, const Batch* batch, size_t number) noexcept nogil
# Make room for what changing these rows keeps for a seal or snapshot under way.
cdef status_t shard_reserve(Shard* shard, const Batch* batch, size_t number) noexcept nogil
# Overwrite a row, or remove it where `record` is NULL, and mark nothing; shard_reserve made room.
cdef void shard_put_back(
    Shard* shard, fid_t fid, uint64_t hashed, const uint8_t* record) noexcept nogil
# Append the records of rows in memory and the fids of cold ones.
cdef status_t shard_pack(
    Shard* shard, const Batch* batch, size_t number, Buffer* records, Buffer* cold) noexcept nogil
# Cold rows come back to memory; ids that are not cold are left alone, and those that do not lie
# where `rows` says, unless that is NULL.
cdef status_t shard_promote(
    Shard* shard, const Batch* batch, size_t number, const uint8_t* records, const row_t* rows
) noexcept nogil
# Rows become cold: the caller has put their records in these places of row files, by position in
# the batch. One that is not what its record says any more stays.
cdef void shard_evict(
    Shard* shard, const Batch* batch, size_t number, const uint8_t* records,
    const uint32_t* places) noexcept nogil
# Of cold rows that still lie where `rows` says the records were put elsewhere, likewise.
cdef void shard_relocate(
    Shard* shard, const Batch* batch, size_t number, const row_t* rows, const uint32_t* places
) noexcept nogil
# Rows that nobody knows yet, by position in the batch: they lie in places from `first` on. Of an id
# that is there already nothing is taken.
cdef status_t shard_enter_cold(
    Shard* shard, const Batch* batch, size_t number, const int64_t* times, uint32_t first
) noexcept nogil
# Where they lie, by position; 0 of those that are not cold.
cdef void shard_cold_rows(
    Shard* shard, const Batch* batch, size_t number, row_t* rows) noexcept nogil
# Append the fids of the segment at hash `position`; the hash where the next begins, 0 at the end.
cdef status_t shard_walk(
    Shard* shard, uint64_t position, Buffer* fids, uint64_t* next_position) noexcept nogil

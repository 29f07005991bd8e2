"""Read a shard as it was at one instant, while calls go on: for a seal and for a snapshot.

A view begins with its flip, which falls between calls. What changes afterwards is packed first, by
locked_save; what is read is marked as read. So each row of the view comes out once, as it was.
"""

from libc.stdint cimport uint8_t, uint64_t

from monolith_kv._batch cimport Batch
from monolith_kv._buffer cimport Buffer
from monolith_kv._shard cimport Shard
from monolith_kv._types cimport status_t

cdef void shard_seal_flip(Shard* shard) noexcept nogil
# Of the fids of the view: append the records of rows that are still as they were (their room is
# reserved), the fids of those that were not there (or are saved), and the fids of cold ones.
cdef status_t shard_seal_read(
    Shard* shard, const Batch* batch, size_t number, Buffer* records, Buffer* absent, Buffer* cold
) noexcept nogil
# is_wanted, by position: is the record, read from overflow, still this view's to use?
cdef void shard_seal_claim(
    Shard* shard, const Batch* batch, size_t number, uint8_t* is_wanted) noexcept nogil
# Move records that were saved so far, by a seal or a snapshot, to `out`, as many as there is room
# for; how many bytes. They are saved no longer.
cdef size_t shard_saved(Shard* shard, bint is_seal, uint8_t* out, size_t room) noexcept nogil
# End the view; of what was saved the memory stays for the next one, if it is at most so large.
cdef void shard_seal_end(Shard* shard, size_t kept_bytes) noexcept nogil
# End the view; everything in it counts as touched again.
cdef void shard_seal_abort(Shard* shard) noexcept nogil
# Count ids, there or not, as touched: their last state is in no delta yet.
cdef status_t shard_touch(Shard* shard, const Batch* batch, size_t number) noexcept nogil

# Fails, where memory lacks, only for a gated table.
cdef status_t shard_snapshot_flip(Shard* shard) noexcept nogil
# The fids touched or removed between the last seal and the flip; no seal has begun since.
cdef status_t shard_snapshot_touched(Shard* shard, Buffer* fids) noexcept nogil
# Fill `out` with the packed bytes of the sketch, once: their number was asked for after the flip.
cdef void shard_snapshot_gate(Shard* shard, uint8_t* out) noexcept nogil
# Append the records (as many as there is room for) and the cold fids of the segment at hash
# `position`. Unless that was the whole of it, the same `position` again goes on with the rest.
cdef status_t shard_snapshot_read(
    Shard* shard, uint64_t position, Buffer* records, Buffer* cold, uint64_t* next_position,
    bint* is_whole
) noexcept nogil
cdef void shard_snapshot_claim(
    Shard* shard, const Batch* batch, size_t number, uint8_t* is_wanted) noexcept nogil
cdef void shard_snapshot_end(Shard* shard, Buffer* saved) noexcept nogil

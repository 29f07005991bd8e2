"""What a table is made of: shards, policy, barrier; made and settled here, worked by _table."""

from libc.math cimport floor
from libc.stdint cimport uint64_t

from monolith_kv._batch cimport Batch
from monolith_kv._buffer cimport Buffer
from monolith_kv._hashing cimport SHARDS
from monolith_kv._lock cimport Lock
from monolith_kv._pages cimport Pages
from monolith_kv._shard cimport Policy, Shard
from monolith_kv._types cimport fid_t, status_t, unix_s_t


cdef class Barrier:
    # Calls that change rows hold it shared, whoever needs an instant between calls alone.
    cdef Lock lock
    # Of a change in steps that is under way, with the lock shared.
    cdef object change
    cdef unsigned long change_thread

    cdef void enter(self) noexcept nogil
    cdef void leave(self) noexcept nogil


cdef class Core:
    cdef Barrier barrier
    cdef Policy policy
    cdef Pages pages
    cdef Shard shards[SHARDS]
    cdef size_t shards_made

    cdef int lock_all(self) except -1
    cdef int unlock_all(self) except -1


cdef int raise_status(status_t status) except -1
# The same; what was collected is freed before.
cdef int raise_freeing(status_t status, Buffer* first, Buffer* second, Buffer* third) except -1
cdef object take_bytes(Buffer* buffer)
cdef object take_fids(Buffer* buffer)
cdef bytes join_parts(parts)
cdef const fid_t* fids_of(const uint64_t[::1] fids) noexcept
cdef int batch_of(Batch* batch, const uint64_t[::1] fids) except -1


cdef inline unix_s_t whole_seconds(double now) noexcept nogil:
    # Beyond what a header holds it makes no difference. Not-a-number is before all times.
    if not now > -1e15:
        return -1000000000000000
    return <unix_s_t>floor(now) if now < 1e15 else 1000000000000000

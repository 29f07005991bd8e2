"""A push or an upsert: what it needs beside rows, and how it is made in steps around the log."""

from libc.stdint cimport uint32_t

from monolith_kv._batch cimport Batch, Sums, Unique
from monolith_kv._buffer cimport Buffer
from monolith_kv._shard cimport Shard
from monolith_kv._types cimport fid_t, status_t, unix_s_t

cdef struct Change:
    Shard* shards
    const fid_t* fids
    const float* values            # gradients, or embeddings
    size_t count
    size_t dim
    bint is_upsert
    # Made by change_create: all that needs no row. It cannot fail for its arguments any more.
    status_t status                # STATUS_OK: they are there
    Unique unique                  # of a push alone, as the next one
    Sums sums
    Batch batch                    # of the distinct fids of a push, of all of an upsert
    unix_s_t now                   # set by change_begin
    uint32_t left                  # which shards are still to be done, a bit each; atomic

# The arrays stay as they are as long as it is used; they are not empty.
cdef void change_set(
    Change* change, Shard* shards, const fid_t* fids, const float* values, size_t count,
    bint is_upsert
) noexcept nogil
cdef status_t change_check(const Change* change) noexcept nogil
cdef status_t change_create(Change* change) noexcept nogil
cdef void change_destroy(Change* change) noexcept nogil
# All of it that may fail. Then any number of threads may run it, each taking shards that are left.
cdef status_t change_begin(Change* change, unix_s_t now) noexcept nogil
cdef void change_run(Change* change) noexcept nogil
# Take rows out again that a call has inserted before its memory ended; frees the list.
cdef void shards_forget(Shard* shards, Buffer* inserted) noexcept nogil

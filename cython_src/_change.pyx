"""A push or an upsert, in steps. See _change.pxd."""

from libc.stdint cimport uint64_t

from monolith_kv._batch cimport (
    batch_create,
    batch_destroy,
    sums_create,
    sums_destroy,
    unique_create,
    unique_destroy,
)
from monolith_kv._buffer cimport Buffer, buffer_free, buffer_init
from monolith_kv._finite cimport floats_finite
from monolith_kv._hashing cimport SHARDS, hash_fid, hash_shard
from monolith_kv._shard cimport ALL_SHARDS, Shard, shards_promise
from monolith_kv._tier cimport shard_put_back
from monolith_kv._types cimport (
    STATUS_NOT_NUMBERS,
    STATUS_OK,
    STATUS_OUT_OF_MEMORY,
    fid_t,
    status_t,
    unix_s_t,
)
from monolith_kv._write cimport shard_upsert_new, shards_push, shards_upsert


cdef void change_set(
    Change* change, Shard* shards, const fid_t* fids, const float* values, size_t count,
    bint is_upsert
) noexcept nogil:
    change.shards, change.dim, change.is_upsert = shards, shards[0].policy.dim, is_upsert
    change.fids, change.values, change.count = fids, values, count
    change.left = ALL_SHARDS
    change.status = STATUS_OUT_OF_MEMORY     # until it is created


cdef status_t change_check(const Change* change) noexcept nogil:
    cdef bint is_finite = floats_finite(change.values, change.count * change.dim)
    return STATUS_OK if is_finite else STATUS_NOT_NUMBERS


cdef status_t change_create(Change* change) noexcept nogil:
    if change.is_upsert:
        change.status = batch_create(&change.batch, change.fids, change.count)
    else:
        change.status = push_create(change)
    return change.status


cdef status_t push_create(Change* push) noexcept nogil:
    cdef status_t status = unique_create(&push.unique, push.fids, push.count)
    if status != STATUS_OK:
        return status
    status = sums_create(&push.sums, &push.unique, push.values, push.count, push.dim)
    if status == STATUS_OK:
        status = batch_create(&push.batch, push.unique.fids, push.unique.count)
        if status == STATUS_OK:
            return STATUS_OK
        sums_destroy(&push.sums)
    unique_destroy(&push.unique)
    return status


cdef void change_destroy(Change* change) noexcept nogil:
    if change.status != STATUS_OK:
        return
    batch_destroy(&change.batch)
    if not change.is_upsert:
        sums_destroy(&change.sums)
        unique_destroy(&change.unique)


cdef status_t change_begin(Change* change, unix_s_t now) noexcept nogil:
    cdef Buffer inserted
    cdef size_t number
    cdef status_t status = STATUS_OK
    change.now = now
    buffer_init(&inserted)
    if change.is_upsert:
        # With all rows there, there is nothing left that could fail.
        for number in range(SHARDS):
            if status == STATUS_OK:
                status = shard_upsert_new(
                    &change.shards[number], &change.batch, number, change.values, now, &inserted)
    if status == STATUS_OK:
        status = shards_promise(change.shards, &change.batch)
    if status != STATUS_OK:
        shards_forget(change.shards, &inserted)
    buffer_free(&inserted)
    return status


cdef void change_run(Change* change) noexcept nogil:
    if change.is_upsert:
        shards_upsert(change.shards, &change.batch, change.values, change.now, &change.left)
    else:
        shards_push(
            change.shards, &change.batch, change.sums.gradients, change.now, &change.left)


cdef void shards_forget(Shard* shards, Buffer* inserted) noexcept nogil:
    cdef const fid_t* fids = <const fid_t*>inserted.data
    cdef uint64_t hashed
    cdef size_t i
    for i in range(inserted.count // sizeof(fid_t)):
        hashed = hash_fid(fids[i])
        shard_put_back(&shards[hash_shard(hashed)], fids[i], hashed, NULL)
    buffer_free(inserted)

"""Check every invariant of index, arena, row files and digest. See _check.pxd."""

from libc.stdint cimport uint32_t, uint64_t

from monolith_kv._arena cimport arena_embedding, arena_header
from monolith_kv._core cimport Core
from monolith_kv._cuckoo cimport BUCKET_CELLS, Bucket, Segment, bucket_has, cuckoo_find_one
from monolith_kv._digest cimport RowDigest, digest_add, digest_row
from monolith_kv._hashing cimport SHARDS, hash_fid, hash_shard
from monolith_kv._lock cimport lock_alone, lock_leave
from monolith_kv._row cimport row_is_cold
from monolith_kv._rowfile cimport RowFile
from monolith_kv._shard cimport MKV_LOAD64, Shard, locked_sum_all


cdef list core_problems(Core core):
    problems = []
    cdef size_t i
    cdef RowDigest found, stated
    cdef uint64_t cold = 0
    found.low = found.high = stated.low = stated.high = 0
    for i in range(SHARDS):
        with nogil:
            lock_alone(&core.shards[i].lock)
        try:
            locked_sum_all(&core.shards[i])
            check_shard(&core.shards[i], i, problems, &found)
            digest_add(&stated, core.shards[i].digest)
            cold += core.shards[i].cold_rows
        finally:
            lock_leave(&core.shards[i].lock)
    # Of all shards: that of rows which came cold is known as a whole, and counted by one of them.
    if cold == 0 and (found.low != stated.low or found.high != stated.high):
        problems.append("the digest of the table is not that of its rows")
    check_row_files(core, problems)
    return problems


cdef check_row_files(Core core, list problems):
    """The rows that row files count are those that shards count as cold."""
    cdef const RowFile* file
    cdef uint32_t number
    live = 0
    core.lock_all()
    cold = core.cold_rows
    if core.policy.row_files != NULL:
        for number in range(core.policy.row_files.count):
            file = core.policy.row_files.files[number]
            live += MKV_LOAD64(&file.live) if file != NULL else 0
    core.unlock_all()
    if live != cold:
        problems.append(f"{cold} rows lie in overflow, its row files count {live}")


cdef check_shard(const Shard* shard, size_t number, list problems, RowDigest* found):
    """Check a shard; the digests of its rows in memory are added up."""
    cdef size_t entry = 0
    cdef uint32_t i, cell
    cdef uint64_t rows = 0, cold = 0
    cdef uint64_t hashed
    cdef const Segment* segment
    cdef const Bucket* bucket
    while entry < (<size_t>1 << shard.index.depth):
        segment = shard.index.directory[entry]
        entry += <size_t>1 << (shard.index.depth - segment.depth)
        for i in range(segment.buckets_count):
            bucket = &segment.buckets[i]
            for cell in range(BUCKET_CELLS):
                if not bucket_has(bucket, cell):
                    continue
                rows += 1
                hashed = hash_fid(bucket.fids[cell])
                if (hash_shard(hashed) != number or cuckoo_find_one(
                        &shard.index, bucket.fids[cell], hashed) != &bucket.rows[cell]):
                    problems.append(f"id {bucket.fids[cell]} lies where no lookup finds it")
                if row_is_cold(bucket.rows[cell]):
                    cold += 1
                elif arena_header(&shard.arena, bucket.rows[cell]) != NULL:
                    digest_add(found, digest_row(
                        bucket.fids[cell], arena_embedding(&shard.arena, bucket.rows[cell]),
                        shard.policy.dim))
    if rows != shard.index.rows or rows - cold != shard.arena.rows or cold != shard.cold_rows:
        problems.append(
            f"shard {number} counts {shard.index.rows} rows, {shard.cold_rows} of them in "
            f"overflow, {shard.arena.rows} in memory; its index holds {rows}, {cold} in overflow")

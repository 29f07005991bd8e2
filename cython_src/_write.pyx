"""Change a shard's rows. See _write.pxd."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from monolith_kv._arena cimport arena_embedding, arena_header, arena_state
from monolith_kv._batch cimport Batch
from monolith_kv._buffer cimport Buffer, buffer_append_u64, buffer_reserve
from monolith_kv._cuckoo cimport FIND_GROUP, cuckoo_find_one
from monolith_kv._hashing cimport SHARDS
from monolith_kv._lock cimport (
    MKV_LOAD,
    PASS_IDS,
    lock_alone,
    lock_leave,
    lock_pass,
    lock_try_shared,
)
from monolith_kv._row cimport ROW_UNSUMMED, row_clamp_time, row_is_cold, row_renew
from monolith_kv._shard cimport (
    Group,
    Policy,
    Shard,
    floats_prefetch,
    group_fill,
    group_prefetch,
    header_warm,
    locked_before_change,
    locked_new_row,
    locked_promise_end,
    locked_remove,
    locked_reserve,
    locked_touch,
    shard_enter_alone,
)
from monolith_kv._types cimport (
    STATUS_OK,
    fid_t,
    row_t,
    status_t,
    unix_s_t,
)

cdef extern from "atomics.h" nogil:
    uint32_t MKV_CLEAR32(uint32_t* place, uint32_t bits)
    uint32_t MKV_SET32(uint32_t* place, uint32_t bits)

cdef extern from "stream.h" nogil:
    bint mkv_streams(const float* target, size_t floats)
    void mkv_stream(float* target, const float* source, size_t floats)
    void mkv_stream_end()

cdef enum:
    STEP_IDS = 128     # found at once by a writer; readers that wait are let in after each step
    PUSH_IDS = 32      # and by a push, which does more with a row, after so many: 5 us


cdef inline size_t step_end(size_t start, size_t end) noexcept nogil:
    return start + STEP_IDS if end - start > STEP_IDS else end


cdef size_t locked_push_some(
    Shard* shard, const Group* group, size_t first, const float** gradients, unix_s_t now
) noexcept nogil:
    """Step the next rows of a group that are there: one kernel call a slice. Where it ended."""
    cdef const Policy* policy = shard.policy
    cdef float* embeddings[PUSH_IDS]
    cdef float* states[PUSH_IDS]
    cdef const float* steps[PUSH_IDS]
    cdef size_t members[PUSH_IDS]
    cdef size_t end = first + PUSH_IDS if group.count - first > PUSH_IDS else group.count
    cdef size_t count = 0
    cdef size_t i
    cdef row_t row
    cdef uint64_t* header
    for i in range(first, end):
        if group.cells[i] == NULL or row_is_cold(group.cells[i][0]):
            continue
        row = group.cells[i][0]
        embeddings[count] = arena_embedding(&shard.arena, row)
        states[count] = arena_state(&shard.arena, row)
        steps[count] = gradients[group.positions[i]]
        members[count] = i
        count += 1
        locked_before_change(shard, group.fids[i], row)
    for i in range(policy.slices_count):
        policy.slices[i].kernel(
            &policy.slices[i].optimizer, &policy.slices[i].span,
            embeddings, states, steps, count)
    for i in range(count):
        header = arena_header(&shard.arena, group.cells[members[i]][0])
        row_renew(header, now)
        locked_touch(shard, group.fids[members[i]], header)
        if policy.counts_heat:
            header_warm(header)
    return end


cdef void shards_push(
    Shard* shards, const Batch* batch, const float** gradients, unix_s_t now, uint32_t* left
) noexcept nogil:
    """Step distinct ids; gradients[position] is each one's sum."""
    cdef size_t number
    cdef uint32_t bit
    cdef bint is_patient
    now = row_clamp_time(now)
    for is_patient in range(2):
        for number in range(SHARDS):
            bit = <uint32_t>1 << number
            if not MKV_CLEAR32(left, bit) & bit:
                continue
            if shard_enter_alone(&shards[number], is_patient):
                locked_push(&shards[number], batch, number, gradients, now)
                locked_promise_end(&shards[number], batch, number)
                lock_leave(&shards[number].lock)
            else:
                MKV_SET32(left, bit)


cdef void shards_warm(Shard* shards, const Batch* batch, const int* is_cool) noexcept nogil:
    cdef size_t number
    cdef size_t start
    cdef size_t end
    cdef Group group
    # The last ones first: whoever pushes begins with the first.
    for number in range(SHARDS - 1, -1, -1):
        start = batch.starts[number]
        end = batch.starts[number + 1]
        # A group at a time, so that nobody waits for more than one.
        while start < end and not MKV_LOAD(is_cool) and lock_try_shared(&shards[number].lock):
            group_fill(&shards[number], batch, start, step_end(start, end), &group)
            group_prefetch(&shards[number], &group, True, True, True)
            lock_leave(&shards[number].lock)
            start += group.count


cdef void locked_push(
    Shard* shard, const Batch* batch, size_t number, const float** gradients, unix_s_t now
) noexcept nogil:
    cdef size_t start = batch.starts[number]
    cdef size_t end = batch.starts[number + 1]
    cdef size_t done
    cdef Group group
    while start < end:
        group_fill(shard, batch, start, step_end(start, end), &group)
        group_prefetch(shard, &group, True, True, True)
        done = 0
        while done < group.count:
            done = locked_push_some(shard, &group, done, gradients, now)
            # Another writer may have come in: what was found before is found anew.
            if start + done < end and lock_pass(&shard.lock):
                break
        start += done


cdef float* locked_about_to_set(Shard* shard, fid_t fid, row_t row, unix_s_t now) noexcept nogil:
    """Do all that an upsert does to a row but to write the embedding; where that goes."""
    cdef uint64_t* header = arena_header(&shard.arena, row)
    locked_before_change(shard, fid, row)
    row_renew(header, now)
    locked_touch(shard, fid, header)
    return arena_embedding(&shard.arena, row)


cdef void embedding_set(float* target, const float* embedding, size_t dim) noexcept nogil:
    if mkv_streams(target, dim):
        mkv_stream(target, embedding, dim)
    else:
        memcpy(target, embedding, dim * sizeof(float))


cdef status_t shards_upsert(
    Shard* shards, const Batch* batch, const float* rows, unix_s_t now, uint32_t* left
) noexcept nogil:
    cdef size_t number
    cdef uint32_t bit
    cdef bint is_patient
    cdef status_t status = STATUS_OK
    now = row_clamp_time(now)
    for is_patient in range(2):
        for number in range(SHARDS):
            bit = <uint32_t>1 << number
            if not MKV_CLEAR32(left, bit) & bit:
                continue
            if shard_enter_alone(&shards[number], is_patient):
                status |= locked_upsert(&shards[number], batch, number, rows, now)
                locked_promise_end(&shards[number], batch, number)
                lock_leave(&shards[number].lock)
            else:
                MKV_SET32(left, bit)
    return status


cdef status_t locked_upsert(
    Shard* shard, const Batch* batch, size_t number, const float* rows, unix_s_t now
) noexcept nogil:
    cdef size_t start = batch.starts[number]
    cdef size_t end = batch.starts[number + 1]
    cdef Group group
    cdef status_t status = STATUS_OK
    while start < end and status == STATUS_OK:
        group_fill(shard, batch, start, step_end(start, end), &group)
        status = locked_upsert_group(shard, &group, rows, now)
        start += group.count
        if start < end and status == STATUS_OK:
            lock_pass(&shard.lock)
    return status


cdef status_t locked_upsert_group(
    Shard* shard, const Group* group, const float* rows, unix_s_t now
) noexcept nogil:
    cdef size_t dim = shard.policy.dim
    cdef size_t fresh = 0
    cdef size_t i
    cdef row_t* cell
    cdef const float* embedding
    cdef float* targets[FIND_GROUP]
    cdef status_t status = STATUS_OK
    group_prefetch(shard, group, False, False, True)
    group_prefetch_changing(shard, group)
    for i in range(group.count):
        floats_prefetch(rows + group.positions[i] * dim, dim)
        if group.cells[i] != NULL:
            targets[i] = locked_about_to_set(shard, group.fids[i], group.cells[i][0], now)
    # Apart from the headers: a store past the caches holds up loads that miss.
    for i in range(group.count):
        if group.cells[i] != NULL:
            embedding_set(targets[i], rows + group.positions[i] * dim, dim)
    # An insertion moves cells about, so what was absent is looked up again, one by one: the same
    # new id may be in the group twice.
    for i in range(group.count):
        if group.cells[i] != NULL or status != STATUS_OK:
            continue
        embedding = rows + group.positions[i] * dim
        cell = cuckoo_find_one(&shard.index, group.fids[i], group.hashes[i])
        if cell != NULL:
            embedding_set(
                locked_about_to_set(shard, group.fids[i], cell[0], now), embedding, dim)
        else:
            status = locked_new_row(shard, group.fids[i], group.hashes[i], embedding, now)
        fresh += 1
        if fresh % PASS_IDS == 0:
            mkv_stream_end()
            lock_pass(&shard.lock)
    mkv_stream_end()
    return status


cdef void group_prefetch_changing(const Shard* shard, const Group* group) noexcept nogil:
    """Ask for the old embeddings, where something still has to be done with them."""
    cdef size_t i
    cdef row_t row
    for i in range(group.count):
        if group.cells[i] == NULL:
            continue
        row = group.cells[i][0]
        if not mkv_streams(arena_embedding(&shard.arena, row), shard.policy.dim) or (
                not arena_header(&shard.arena, row)[0] & ROW_UNSUMMED):
            floats_prefetch(arena_embedding(&shard.arena, row), shard.policy.dim)


cdef status_t shard_insert(
    Shard* shard, const Batch* batch, size_t number, unix_s_t now
) noexcept nogil:
    """Give ids that are absent a row with their initial value, past the gate."""
    cdef size_t i
    cdef uint32_t position
    cdef status_t status
    now = row_clamp_time(now)
    lock_alone(&shard.lock)
    status = locked_reserve(shard, batch.starts[number + 1] - batch.starts[number])
    for i in range(batch.starts[number], batch.starts[number + 1]):
        position = batch.order[i]
        if status == STATUS_OK and cuckoo_find_one(
                &shard.index, batch.fids[position], batch.hashes[position]) == NULL:
            status = locked_new_row(
                shard, batch.fids[position], batch.hashes[position], NULL, now)
    lock_leave(&shard.lock)
    return status


cdef status_t shard_upsert_new(
    Shard* shard, const Batch* batch, size_t number, const float* rows, unix_s_t now,
    Buffer* inserted
) noexcept nogil:
    cdef size_t start = batch.starts[number]
    cdef size_t end = batch.starts[number + 1]
    cdef size_t i
    cdef Group group
    cdef status_t status
    now = row_clamp_time(now)
    lock_alone(&shard.lock)
    status = locked_reserve(shard, end - start)
    status |= buffer_reserve(inserted, (end - start) * sizeof(fid_t))
    while start < end and status == STATUS_OK:
        group_fill(shard, batch, start, end, &group)
        for i in range(group.count):
            # Again, for the same id may be in the group twice.
            if status == STATUS_OK and cuckoo_find_one(
                    &shard.index, group.fids[i], group.hashes[i]) == NULL:
                status = locked_new_row(
                    shard, group.fids[i], group.hashes[i],
                    rows + <size_t>group.positions[i] * shard.policy.dim, now)
                if status == STATUS_OK:
                    buffer_append_u64(inserted, group.fids[i])
            if i % PASS_IDS == 0 and status == STATUS_OK and lock_pass(&shard.lock):
                status = locked_reserve(shard, end - start - i)
        start += group.count
    lock_leave(&shard.lock)
    return status


cdef void shard_remove(
    Shard* shard, const Batch* batch, size_t number, uint64_t* removed
) noexcept nogil:
    cdef size_t start = batch.starts[number]
    cdef size_t end = batch.starts[number + 1]
    cdef size_t i
    cdef row_t* cell
    cdef Group group
    lock_alone(&shard.lock)
    while start < end:
        group_fill(shard, batch, start, end, &group)
        for i in range(group.count):
            # Again, for the same id may be in the group twice.
            cell = cuckoo_find_one(&shard.index, group.fids[i], group.hashes[i])
            if cell != NULL and not row_is_cold(cell[0]):
                locked_remove(shard, group.fids[i], group.hashes[i], cell[0])
                removed[0] += 1
                shard.counters.removed += 1
        start += group.count
    locked_promise_end(shard, batch, number)
    lock_leave(&shard.lock)

"""One shard of a table: index, arena, sketch and what changed, under one lock.

A row is in the index exactly once. Its number there is its place in the arena or, for a row that
lies in overflow ("cold"), in a row file. Three views of the rows are kept apart by flag
bits in their headers: what was touched since the last seal, what a seal that is under way still has
to read, and what a snapshot that is under way still has to read. A row that changes while one of
the latter two still wants it is packed first (copy on write), so a view is of one instant.

The digest of a row that is trained over and over is not kept up at each change: its old one is
taken out of the sum at the first (ROW_UNSUMMED), the new one is put in when a seal reads the row or
somebody asks. Such a row is always among those touched since the last seal, or in a seal's way. The
digest of a view's instant is the sum at that instant and those rows in its way that were not in it.

Functions shard_* of the modules above this one lock the shard; functions whose name begins with
`locked_` are called with the lock held alone, those with `shared_` with all shards' held at least
shared. A change goes through the shards that are free first, then waits for the others
(shard_enter_alone). Cold rows are never changed: whoever changes ids promotes their rows before.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t

from monolith_kv._arena cimport Arena, arena_header
from monolith_kv._batch cimport Batch
from monolith_kv._buffer cimport Buffer, buffer_append_u64
from monolith_kv._cuckoo cimport Cuckoo, FIND_GROUP
from monolith_kv._digest cimport RowDigest
from monolith_kv._hashing cimport SHARDS
from monolith_kv._initializers cimport Initializer
from monolith_kv._lock cimport Lock, lock_alone, lock_try_alone
from monolith_kv._optimizers cimport OptimizerParameters, SliceSpan, optimizer_kernel_t
from monolith_kv._pages cimport Pages
from monolith_kv._row cimport ROW_HEAT_MAX, ROW_HEAT_SHIFT, row_is_cold
from monolith_kv._rowfile cimport RowFiles, rowfile_header
from monolith_kv._sketch cimport Sketch
from monolith_kv._types cimport fid_t, row_t, status_t, unix_s_t

cdef extern from "atomics.h":
    uint64_t MKV_LOAD64(const uint64_t* place) noexcept nogil
    void MKV_STORE64(uint64_t* place, uint64_t value) noexcept nogil
    void MKV_ADD64(uint64_t* place, uint64_t value) noexcept nogil
    bint MKV_SWAP64(uint64_t* place, uint64_t* seen, uint64_t value) noexcept nogil

cdef extern from "prefetch.h":
    void MKV_PREFETCH(const void* address) noexcept nogil

cdef enum:
    SLOTS = 65536      # a slot is the top 16 bits of a fid
    ALL_SHARDS = (1 << SHARDS) - 1
    PREFETCH_FLOATS_MAX = 512   # of a longer row the hardware prefetcher fetches the rest

cdef struct SlicePolicy:
    SliceSpan span
    OptimizerParameters optimizer
    optimizer_kernel_t kernel
    Initializer initializer

cdef struct Policy:
    # One for all shards of a table; changed only while all their locks are held.
    size_t dim
    size_t state_floats
    size_t record_bytes
    size_t slices_count
    SlicePolicy* slices
    int64_t ttl_s                  # 0: rows never expire
    int64_t* ttl_s_by_slot         # NULL: ttl_s for all
    bint is_gated
    uint32_t threshold
    uint32_t* threshold_by_slot    # NULL: threshold for all
    bint counts_heat               # False until rows may have to leave memory
    RowFiles* row_files            # NULL until a row leaves memory

cdef struct Counters:
    uint64_t inserted
    uint64_t expired
    uint64_t removed
    uint64_t evicted
    uint64_t promoted
    uint64_t lookups               # ids asked for by lookup or pull
    uint64_t hits                  # of them with a row
    uint64_t cold_hits             # of those, that lookup found in overflow
    uint64_t admitted              # ids that passed the gate
    uint64_t rejected              # sightings that did not

cdef struct Shard:
    Lock lock                      # shared by those who change no row
    const Policy* policy
    Cuckoo index
    Arena arena
    Sketch sketch
    Buffer sightings               # counted since the last take: see _admission.pyx
    size_t sightings_run           # where in it the run of this call begins
    RowDigest digest               # of cold rows and of all others that are not ROW_UNSUMMED
    uint64_t cold_rows             # stored atomically: read without the lock
    Counters counters
    size_t promised                # rows that calls under way may change: room is reserved
    Buffer touched                 # fids; some may be there twice
    uint64_t touched_flag          # which of the two touched bits is today's
    bint is_sealing
    Buffer seal_fids               # touched or removed before the flip
    RowDigest seal_digest          # of the rows at the flip, once the seal has read all in its way
    Buffer seal_saved              # records of rows that changed before the seal read them
    uint64_t snapshot_flag         # a header with this ROW_SNAPSHOT bit is out of a snapshot's way
    uint64_t snapshot_left         # rows that a snapshot still has to read
    RowDigest snapshot_digest      # of the rows at the flip, once the snapshot has read all
    size_t snapshot_touched        # bytes of `touched` at the flip
    uint64_t snapshot_position     # of the segment that was read in part, its moves then, and the
    uint32_t snapshot_moves        # bucket to go on with
    uint32_t snapshot_bucket
    Buffer snapshot_saved
    uint64_t hand                  # where the search for cold rows goes on, a hash

cdef struct Group:
    # At most FIND_GROUP ids of a batch whose cache misses are in flight together.
    size_t count
    const uint32_t* positions
    fid_t fids[FIND_GROUP]
    uint64_t hashes[FIND_GROUP]
    row_t* cells[FIND_GROUP]

cdef status_t shard_create(
    Shard* shard, const Policy* policy, Pages* pages, uint64_t seed) noexcept nogil
cdef void shard_destroy(Shard* shard) noexcept nogil

# --- for the modules that look at a shard in other ways
cdef void group_fill(
    const Shard* shard, const Batch* batch, size_t start, size_t end, Group* group
) noexcept nogil
cdef void group_prefetch(
    const Shard* shard, const Group* group, bint embedding, bint state, bint header
) noexcept nogil
cdef status_t locked_reserve(Shard* shard, size_t rows) noexcept nogil
# Reserve for a whole batch: a call fails before its first change, or not for want of room. Between
# these two, with the barrier held, all rows of the batch may be changed; each shard ends by itself.
cdef status_t shards_promise(Shard* shards, const Batch* batch) noexcept nogil
cdef void locked_promise_end(Shard* shard, const Batch* batch, size_t number) noexcept nogil
cdef void locked_before_change(Shard* shard, fid_t fid, row_t row) noexcept nogil
cdef void locked_sum(Shard* shard, fid_t fid, row_t row) noexcept nogil
cdef void locked_sum_all(Shard* shard) noexcept nogil
cdef void locked_save(Shard* shard, fid_t fid, row_t row) noexcept nogil
cdef void locked_pack(const Shard* shard, fid_t fid, row_t row, uint8_t* out) noexcept nogil
cdef status_t locked_new_row(
    Shard* shard, fid_t fid, uint64_t hashed, const float* embedding, unix_s_t now) noexcept nogil
cdef void locked_remove(Shard* shard, fid_t fid, uint64_t hashed, row_t row) noexcept nogil


cdef inline bint shard_enter_alone(Shard* shard, bint is_patient) noexcept nogil:
    """Lock a shard to change it; False: it is not free, and who calls will not wait."""
    if not is_patient:
        return lock_try_alone(&shard.lock)
    lock_alone(&shard.lock)
    return True


cdef inline void floats_prefetch(const float* first, size_t count) noexcept nogil:
    cdef const char* line = <const char*>(<uintptr_t>first & ~<uintptr_t>63)
    cdef const char* end = <const char*>(
        first + (count if count < PREFETCH_FLOATS_MAX else PREFETCH_FLOATS_MAX))
    while line < end:
        MKV_PREFETCH(line)
        line += 64


cdef inline uint32_t fid_slot(fid_t fid) noexcept nogil:
    return <uint32_t>(fid >> 48)


cdef inline uint64_t seal_flag(const Shard* shard) noexcept nogil:
    """The touched bit that marks what a seal under way still has to read."""
    return shard.touched_flag ^ 3


cdef inline void locked_touch(Shard* shard, fid_t fid, uint64_t* header) noexcept nogil:
    """Mark a row for the next seal; locked_reserve made room."""
    if not header[0] & shard.touched_flag:
        header[0] |= shard.touched_flag
        buffer_append_u64(&shard.touched, fid)


cdef inline uint64_t* shard_header(const Shard* shard, row_t row) noexcept nogil:
    """The header of a row, wherever it lies."""
    if row_is_cold(row):
        return rowfile_header(shard.policy.row_files, row)
    return arena_header(&shard.arena, row)


cdef inline uint64_t shared_header(const Shard* shard, row_t row) noexcept nogil:
    """The header of a row for who shares the lock: others may be warming the row."""
    return MKV_LOAD64(shard_header(shard, row))


cdef inline void header_warm(uint64_t* header) noexcept nogil:
    """One step warmer, up to ROW_HEAT_MAX."""
    cdef uint64_t heat = <uint64_t>ROW_HEAT_MAX << ROW_HEAT_SHIFT
    cdef uint64_t seen = MKV_LOAD64(header)
    # Readers share the lock: where two meet, one of them warms the row.
    if (seen & heat) != heat:
        MKV_SWAP64(header, &seen, seen + (<uint64_t>1 << ROW_HEAT_SHIFT))

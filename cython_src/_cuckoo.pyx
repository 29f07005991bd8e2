"""fid -> row number. See _cuckoo.pxd."""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memset

from monolith_kv._hashing cimport (
    SHARD_BITS,
    hash_bucket_first,
    hash_bucket_second,
    hash_fid,
    hash_mix,
    hash_shard,
)
from monolith_kv._pages cimport (
    PARTS_MAX,
    Pages,
    pages_give_part,
    pages_take_part,
    part_bytes,
)
from monolith_kv._types cimport STATUS_OK, STATUS_OUT_OF_MEMORY, fid_t, row_t, status_t

cdef extern from "lines.h":
    void* mkv_lines_allocate(size_t size_bytes) noexcept nogil
    void mkv_lines_free(void* lines, size_t size_bytes) noexcept nogil

cdef extern from "prefetch.h":
    void MKV_PREFETCH(const void* address) noexcept nogil

cdef extern from "atomics.h":
    void MKV_STORE64(uint64_t* place, uint64_t value) noexcept nogil

cdef struct PathNode:
    uint32_t bucket
    int parent       # node whose bucket a fid would leave for this one; -1: the newcomer's own
    uint32_t cell    # the cell of that fid there

cdef enum:
    SEGMENT_ROWS_MAX = 4096
    SEGMENT_BUCKETS_MIN = 4
    SEGMENT_ROWS_EXPECTED = 3200    # of a new segment, at most: a tenth below what splits it
    PARTS_MIN = 5              # a segment grows up to a fifth of a piece, then it splits
    PATH_NODES_MAX = 400       # buckets that an insert may look at for a free cell

# A segment is rebuilt when this full: with five cells a bucket moves seldom fail below 0.97, but
# from here on an insertion moves many.
cdef double LOAD_MAX = 0.92
# The fill after a rebuild, at most: between memory (index bytes a row) and work (moves an insert).
cdef double LOAD_REBUILT = 0.86


# --- find ------------------------------------------------------------------------------------

cdef inline int segment_find(
    const Segment* segment, fid_t fid, uint64_t hashed, Bucket** bucket
) noexcept nogil:
    """The cell that holds a fid, and its bucket; -1: none."""
    bucket[0] = segment.buckets + hash_bucket_first(
        hashed, segment.multiplier, segment.buckets_count)
    cdef int cell = bucket_find(bucket[0], fid)
    if cell < 0:
        bucket[0] = segment.buckets + hash_bucket_second(
            hashed, segment.multiplier, segment.buckets_count)
        cell = bucket_find(bucket[0], fid)
    return cell


cdef row_t* cuckoo_find_one(const Cuckoo* index, fid_t fid, uint64_t hashed) noexcept nogil:
    cdef Bucket* bucket
    cdef int cell = segment_find(cuckoo_segment(index, hashed), fid, hashed, &bucket)
    return &bucket.rows[cell] if cell >= 0 else NULL


cdef inline Segment* find_segment(
    const Cuckoo* first, size_t stride, uint64_t hashed
) noexcept nogil:
    return cuckoo_segment(
        <const Cuckoo*>(<const char*>first + stride * hash_shard(hashed)), hashed)


cdef void cuckoo_find(
    const Cuckoo* first, size_t stride, const fid_t* fids, const uint64_t* hashes, size_t count,
    row_t** cells
) noexcept nogil:
    """Find at most FIND_GROUP fids; cells[i] points to the row number of fids[i], or is NULL."""
    cdef Bucket* buckets[FIND_GROUP]
    cdef uint32_t missed[FIND_GROUP]
    cdef size_t misses = 0
    cdef size_t i, k
    cdef int cell
    cdef Segment* segment
    for i in range(count):
        segment = find_segment(first, stride, hashes[i])
        buckets[i] = segment.buckets + hash_bucket_first(
            hashes[i], segment.multiplier, segment.buckets_count)
        MKV_PREFETCH(buckets[i])
    for i in range(count):
        cell = bucket_find(buckets[i], fids[i])
        if cell >= 0:
            cells[i] = &buckets[i].rows[cell]
            continue
        cells[i] = NULL
        segment = find_segment(first, stride, hashes[i])
        buckets[i] = segment.buckets + hash_bucket_second(
            hashes[i], segment.multiplier, segment.buckets_count)
        MKV_PREFETCH(buckets[i])
        missed[misses] = <uint32_t>i
        misses += 1
    for k in range(misses):
        i = missed[k]
        cell = bucket_find(buckets[i], fids[i])
        if cell >= 0:
            cells[i] = &buckets[i].rows[cell]


# --- insert and erase ------------------------------------------------------------------------

cdef status_t cuckoo_insert(
    Cuckoo* index, fid_t fid, uint64_t hashed, row_t row
) noexcept nogil:
    """Insert a fid that is absent. On STATUS_OUT_OF_MEMORY nothing has changed."""
    cdef Segment* segment
    while True:
        segment = cuckoo_segment(index, hashed)
        if segment.used < segment_rows_max(segment) and segment_place(segment, fid, hashed, row):
            MKV_STORE64(&index.rows, index.rows + 1)
            return STATUS_OK
        if segment_grow(index, segment, hashed) != STATUS_OK:
            return STATUS_OUT_OF_MEMORY


cdef void cuckoo_erase(Cuckoo* index, fid_t fid, uint64_t hashed) noexcept nogil:
    cdef Segment* segment = cuckoo_segment(index, hashed)
    cdef Bucket* bucket
    cdef int cell = segment_find(segment, fid, hashed, &bucket)
    if cell >= 0:
        bucket.used &= ~(<uint32_t>1 << cell)
        segment.used -= 1
        MKV_STORE64(&index.rows, index.rows - 1)


cdef inline int bucket_room(const Bucket* bucket) noexcept nogil:
    """An empty cell, or -1."""
    cdef uint32_t room = ~bucket.used & ((<uint32_t>1 << BUCKET_CELLS) - 1)
    return <int>__builtin_ctz(room) if room else -1


cdef inline void bucket_put(Bucket* bucket, int cell, fid_t fid, row_t row) noexcept nogil:
    bucket.fids[cell] = fid
    bucket.rows[cell] = row
    bucket.used |= <uint32_t>1 << cell


cdef bint segment_place(
    Segment* segment, fid_t fid, uint64_t hashed, row_t row
) noexcept nogil:
    """Put a fid into one of its buckets, moving others along the shortest path to a free cell.

    False: no path was found within PATH_NODES_MAX buckets, and nothing has moved.
    """
    cdef uint32_t first = hash_bucket_first(hashed, segment.multiplier, segment.buckets_count)
    cdef uint32_t second = hash_bucket_second(hashed, segment.multiplier, segment.buckets_count)
    cdef uint32_t target = first
    cdef int room = bucket_room(&segment.buckets[first])
    if room < 0:
        target = second
        room = bucket_room(&segment.buckets[second])
    if room < 0:
        room = path_clear(segment, first, second, &target)
        if room < 0:
            return False
        segment.moves += 1
    bucket_put(&segment.buckets[target], room, fid, row)
    segment.used += 1
    return True


cdef int path_clear(
    Segment* segment, uint32_t first, uint32_t second, uint32_t* target
) noexcept nogil:
    """Free a cell of one of two full buckets, `target`; which cell, or -1: nothing has moved."""
    cdef PathNode nodes[PATH_NODES_MAX]
    cdef int count = 2
    cdef int head = 0
    cdef int room
    cdef uint32_t cell, other
    cdef uint64_t mixed
    cdef Bucket* bucket
    nodes[0].bucket = first
    nodes[1].bucket = second
    nodes[0].parent = nodes[1].parent = -1
    while head < count:
        bucket = &segment.buckets[nodes[head].bucket]
        for cell in range(BUCKET_CELLS):
            if count == PATH_NODES_MAX:
                return -1
            mixed = hash_fid(bucket.fids[cell])
            other = hash_bucket_first(mixed, segment.multiplier, segment.buckets_count)
            if other == nodes[head].bucket:
                other = hash_bucket_second(mixed, segment.multiplier, segment.buckets_count)
            if path_visits(nodes, head, other):
                continue
            nodes[count].bucket = other
            nodes[count].parent = head
            nodes[count].cell = cell
            room = bucket_room(&segment.buckets[other])
            if room >= 0:
                return path_free(segment, nodes, count, room, target)
            count += 1
        head += 1
    return -1


cdef inline bint path_visits(
    const PathNode* nodes, int node, uint32_t bucket
) noexcept nogil:
    while node >= 0:
        if nodes[node].bucket == bucket:
            return True
        node = nodes[node].parent
    return False


cdef int path_free(
    Segment* segment, const PathNode* nodes, int node, int room, uint32_t* target
) noexcept nogil:
    """Move the fids along a path up, last one first; the cell of `target` that is free then."""
    cdef Bucket* source
    cdef int cell
    while nodes[node].parent >= 0:
        source = &segment.buckets[nodes[nodes[node].parent].bucket]
        cell = <int>nodes[node].cell
        bucket_put(
            &segment.buckets[nodes[node].bucket], room,
            source.fids[cell], source.rows[cell])
        # Whoever comes next, the newcomer at last, is put over what is left behind here.
        room = cell
        node = nodes[node].parent
    target[0] = nodes[node].bucket
    return room


# --- growth ----------------------------------------------------------------------------------

cdef inline uint32_t segment_rows_max(const Segment* segment) noexcept nogil:
    return <uint32_t>(LOAD_MAX * BUCKET_CELLS * segment.buckets_count)


cdef inline uint32_t part_buckets(uint32_t parts) noexcept nogil:
    return <uint32_t>(part_bytes(parts) // sizeof(Bucket))


cdef uint32_t buckets_parts(uint32_t buckets_count) noexcept nogil:
    """Into how many parts a piece is cut whose parts have so many buckets; 0: none has."""
    cdef uint32_t parts
    for parts in range(1, PARTS_MAX + 1):
        if part_buckets(parts) == buckets_count:
            return parts
    return 0


cdef uint32_t buckets_for(uint64_t rows) noexcept nogil:
    cdef uint32_t count = <uint32_t>(rows / (LOAD_REBUILT * BUCKET_CELLS)) + 1
    cdef uint32_t parts = PARTS_MAX
    if count < SEGMENT_BUCKETS_MIN:
        return SEGMENT_BUCKETS_MIN
    if count <= part_buckets(PARTS_MAX) // 2 or count > part_buckets(1):
        return count
    while part_buckets(parts) < count:
        parts -= 1
    return part_buckets(parts)


cdef inline uint64_t cuckoo_random(Cuckoo* index) noexcept nogil:
    index.random += <uint64_t>0x9E3779B97F4A7C15ULL
    return hash_mix(index.random)


cdef status_t segment_grow(Cuckoo* index, Segment* segment, uint64_t hashed) noexcept nogil:
    """Split a large segment, rebuild a small one with more buckets."""
    # Hashes that share many leading bits would split for ever: the directory may have four times
    # the entries that evenly spread rows would need, then the segment grows instead.
    cdef bint sparse = (<uint64_t>SEGMENT_ROWS_MAX << segment.depth) > 4 * index.rows
    if segment.buckets_count >= part_buckets(PARTS_MIN) and not sparse:
        return segment_split(index, segment, hashed)
    cdef uint32_t count = buckets_for(segment.used + 1)
    if count <= segment.buckets_count:
        count = buckets_more(segment.buckets_count)
    if index.rows >= index.rows_expected:
        index.buckets_expected = 0
    if count < index.buckets_expected:
        count = index.buckets_expected
    return segment_rebuild(index, segment, count)


cdef inline uint32_t buckets_more(uint32_t buckets_count) noexcept nogil:
    return buckets_for(<uint64_t>((buckets_count * 9 // 8) * (LOAD_REBUILT * BUCKET_CELLS)))


cdef Bucket* buckets_allocate(Cuckoo* index, uint32_t buckets_count) noexcept nogil:
    """Empty buckets, or NULL where memory lacks."""
    cdef uint32_t parts = buckets_parts(buckets_count)
    cdef size_t size_bytes = buckets_count * sizeof(Bucket)
    cdef Bucket* buckets
    if parts:
        buckets = <Bucket*>pages_take_part(index.pages, parts)
    else:
        buckets = <Bucket*>mkv_lines_allocate(size_bytes)
    if buckets != NULL:
        memset(buckets, 0, size_bytes)
    return buckets


cdef void buckets_free(Cuckoo* index, Segment* segment) noexcept nogil:
    if segment.buckets == NULL:
        return
    if buckets_parts(segment.buckets_count):
        pages_give_part(index.pages, segment.buckets)
    else:
        mkv_lines_free(segment.buckets, segment.buckets_count * sizeof(Bucket))


cdef status_t segment_fill(
    Cuckoo* index, Segment* target, const Segment* source, int half, uint32_t buckets_count
) noexcept nogil:
    """Give `target` new buckets with the fids of `source`: of all (half -1) or of one half."""
    cdef uint32_t i, cell
    cdef uint64_t hashed
    cdef const Bucket* bucket
    cdef bint placed = False
    target.buckets = NULL
    target.buckets_count = 0
    while not placed:
        buckets_free(index, target)
        target.buckets = buckets_allocate(index, buckets_count)
        if target.buckets == NULL:
            return STATUS_OUT_OF_MEMORY
        target.buckets_count = buckets_count
        target.multiplier = cuckoo_random(index) | 1
        target.used = 0
        target.moves = 0
        placed = True
        for i in range(source.buckets_count):
            bucket = &source.buckets[i]
            for cell in range(BUCKET_CELLS):
                if not bucket_has(bucket, cell) or not placed:
                    continue
                hashed = hash_fid(bucket.fids[cell])
                if half >= 0 and <int>(((hashed << SHARD_BITS) << source.depth) >> 63) != half:
                    continue
                placed = segment_place(target, bucket.fids[cell], hashed, bucket.rows[cell])
        # A multiplier that leaves a fid without a place is bad luck: another, and a little room.
        buckets_count = buckets_more(buckets_count)
    return STATUS_OK


cdef status_t segment_rebuild(
    Cuckoo* index, Segment* segment, uint32_t buckets_count
) noexcept nogil:
    cdef Segment rebuilt
    if segment_fill(index, &rebuilt, segment, -1, buckets_count) != STATUS_OK:
        return STATUS_OUT_OF_MEMORY
    index.size_bytes += rebuilt.buckets_count * sizeof(Bucket)
    index.size_bytes -= segment.buckets_count * sizeof(Bucket)
    buckets_free(index, segment)
    segment.buckets = rebuilt.buckets
    segment.buckets_count = rebuilt.buckets_count
    segment.multiplier = rebuilt.multiplier
    segment.moves += 1
    return STATUS_OK


cdef status_t segment_split(Cuckoo* index, Segment* segment, uint64_t hashed) noexcept nogil:
    """Replace a segment by two that each own half of its hashes."""
    if segment.depth == index.depth and directory_double(index) != STATUS_OK:
        return STATUS_OUT_OF_MEMORY
    cdef Segment* upper = <Segment*>malloc(sizeof(Segment))
    cdef Segment lower
    cdef uint32_t count = buckets_for(segment.used // 2 + 1)
    if upper == NULL:
        return STATUS_OUT_OF_MEMORY
    upper.buckets = NULL
    lower.buckets = NULL
    if (segment_fill(index, &lower, segment, 0, count) != STATUS_OK
            or segment_fill(index, upper, segment, 1, count) != STATUS_OK):
        buckets_free(index, &lower)
        buckets_free(index, upper)
        free(upper)
        return STATUS_OUT_OF_MEMORY
    index.size_bytes += sizeof(Segment) + sizeof(Bucket) * (
        lower.buckets_count + upper.buckets_count - segment.buckets_count)
    buckets_free(index, segment)
    lower.depth = upper.depth = segment.depth + 1
    lower.moves = segment.moves + 1
    segment[0] = lower
    # The upper half of the entries that were this segment's now lead to the new one.
    cdef uint32_t entries = <uint32_t>1 << (index.depth - lower.depth)
    cdef uint32_t first = (cuckoo_place(index, hashed) & ~(2 * entries - 1)) + entries
    cdef uint32_t i
    for i in range(entries):
        index.directory[first + i] = upper
    return STATUS_OK


cdef status_t directory_double(Cuckoo* index) noexcept nogil:
    cdef size_t entries = <size_t>1 << index.depth
    cdef Segment** directory = <Segment**>realloc(
        index.directory, 2 * entries * sizeof(Segment*))
    cdef size_t i
    if directory == NULL:
        return STATUS_OUT_OF_MEMORY
    for i in range(entries):
        directory[2 * (entries - 1 - i) + 1] = directory[entries - 1 - i]
        directory[2 * (entries - 1 - i)] = directory[entries - 1 - i]
    index.directory = directory
    index.depth += 1
    index.size_bytes += entries * sizeof(Segment*)
    return STATUS_OK


cdef status_t cuckoo_expect(Cuckoo* index, uint64_t rows) noexcept nogil:
    """Split while there is nothing to move. A segment gets its share of the room with its first
    rows: then the memory is cleared by who is about to use it."""
    cdef uint32_t depth = 0
    cdef uint64_t i
    cdef status_t status = STATUS_OK
    if index.rows or index.depth:
        return STATUS_OK
    index.rows_expected = rows
    while rows >> depth > SEGMENT_ROWS_EXPECTED and status == STATUS_OK:
        for i in range(<uint64_t>1 << depth):
            status |= segment_split(
                index, index.directory[i << (index.depth - depth)],
                (i << (63 - depth) << 1) >> SHARD_BITS)
        depth += 1
    # Shares differ by chance: few of them by a sixteenth.
    if status == STATUS_OK:
        index.buckets_expected = buckets_for((rows >> depth) + (rows >> depth >> 4) + 16)
    return status


cdef void cuckoo_shrink(Cuckoo* index, uint64_t position) noexcept nogil:
    """Rebuild the segment at a hash smaller, if it is mostly empty; where memory lacks, do not."""
    cdef Segment* segment = cuckoo_segment(index, position)
    cdef uint32_t count = buckets_for(segment.used)
    if count * 4 <= segment.buckets_count * 3:
        index.buckets_expected = 0    # Rows have come and gone.
        segment_rebuild(index, segment, count)


cdef uint64_t segment_end(const Segment* segment, uint64_t position) noexcept nogil:
    """The first hash behind the range of a segment that owns `position`; 0 at the very end."""
    cdef uint32_t width = 64 - SHARD_BITS - segment.depth
    return ((position >> width) + 1) << width


# --- life ------------------------------------------------------------------------------------

cdef status_t cuckoo_create(Cuckoo* index, Pages* pages, uint64_t seed) noexcept nogil:
    cdef Segment nothing
    cdef Segment* segment = <Segment*>malloc(sizeof(Segment))
    memset(index, 0, sizeof(Cuckoo))
    memset(&nothing, 0, sizeof(Segment))
    index.pages = pages
    index.random = seed
    index.directory = <Segment**>malloc(sizeof(Segment*))
    if segment != NULL:
        segment.buckets = NULL
    if (segment == NULL or index.directory == NULL or segment_fill(
            index, segment, &nothing, -1, SEGMENT_BUCKETS_MIN) != STATUS_OK):
        free(segment)
        free(index.directory)
        index.directory = NULL
        return STATUS_OUT_OF_MEMORY
    segment.depth = 0
    index.directory[0] = segment
    index.size_bytes = (
        sizeof(Segment*) + sizeof(Segment) + segment.buckets_count * sizeof(Bucket))
    return STATUS_OK


cdef void cuckoo_destroy(Cuckoo* index) noexcept nogil:
    cdef Segment* segment
    cdef size_t i = 0
    cdef size_t entries = <size_t>1 << index.depth
    if index.directory != NULL:
        while i < entries:
            segment = index.directory[i]
            i += <size_t>1 << (index.depth - segment.depth)
            buckets_free(index, segment)
            free(segment)
    free(index.directory)
    memset(index, 0, sizeof(Cuckoo))

"""White-box doors for tests: each calls one internal function. Nothing shipped uses them."""

import numpy as np

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc

from monolith_kv._backing cimport backer_ready_bytes
from monolith_kv._checksum cimport crc32c_update, crc32c_update_portable
from monolith_kv._cuckoo cimport (
    BUCKET_CELLS,
    Cuckoo,
    Segment,
    bucket_has,
    cuckoo_create,
    cuckoo_destroy,
    cuckoo_erase,
    cuckoo_insert,
    cuckoo_segment,
    cuckoo_shrink,
)
from monolith_kv._digest cimport DIGEST_DIM_MAX, RowDigest, digest_add, digest_row, digest_subtract
from monolith_kv._hashing cimport SHARD_BITS, hash_fid
from monolith_kv._initializers cimport Initializer, initializer_fill
from monolith_kv._optimizers cimport OptimizerParameters, SliceSpan, optimizer_initial_state
from monolith_kv._optimizers cimport optimizer_kernel, optimizer_kernel_t, optimizer_state_floats
from monolith_kv._pages cimport (
    PIECE_BYTES,
    PieceHead,
    Pages,
    pages_create,
    pages_destroy,
    pages_give,
    pages_give_part,
    pages_spare_bytes,
    pages_take,
    pages_take_part,
    part_bytes,
)
from monolith_kv._sketch cimport (
    SKETCH_HEADER_BYTES,
    Sketch,
    sketch_advance,
    sketch_create,
    sketch_destroy,
    sketch_error_estimate,
    sketch_estimate,
    sketch_fill,
    sketch_freeze,
    sketch_frozen_bytes,
    sketch_frozen_read,
    sketch_pack,
    sketch_packed_bytes,
    sketch_prefetch,
    sketch_resize_counts,
    sketch_see,
    sketch_size_bytes,
    sketch_unpack,
)
from monolith_kv._types cimport STATUS_OK


# --- checksum -----------------------------------------------------------------------------------

def crc32c_portable(const uint8_t[::1] data, uint32_t value=0):
    """CRC-32C by tables."""
    return crc32c_update_portable(value, &data[0] if data.shape[0] else NULL, data.shape[0])


def crc32c_fast(const uint8_t[::1] data, uint32_t value=0):
    """CRC-32C through the function other modules call."""
    return crc32c_update(value, &data[0] if data.shape[0] else NULL, data.shape[0])


# --- digest -------------------------------------------------------------------------------------

def digest_rows(const uint64_t[::1] fids, const float[:, ::1] rows):
    """The digests of records, shape (n, 2)."""
    assert fids.shape[0] == rows.shape[0] and rows.shape[1] <= DIGEST_DIM_MAX
    cdef uint64_t[:, ::1] out = np.empty((fids.shape[0], 2), np.uint64)
    cdef RowDigest digest
    cdef Py_ssize_t i
    with nogil:
        for i in range(fids.shape[0]):
            digest = digest_row(fids[i], &rows[i, 0], rows.shape[1])
            out[i, 0] = digest.low
            out[i, 1] = digest.high
    return np.asarray(out)


def digest_total(const uint64_t[:, ::1] digests, const uint64_t[:, ::1] taken):
    """The sum of digests less that of those taken away, as (low, high)."""
    cdef RowDigest total
    cdef RowDigest row
    cdef Py_ssize_t i
    total.low = 0
    total.high = 0
    for i in range(digests.shape[0]):
        row.low = digests[i, 0]
        row.high = digests[i, 1]
        digest_add(&total, row)
    for i in range(taken.shape[0]):
        row.low = taken[i, 0]
        row.high = taken[i, 1]
        digest_subtract(&total, row)
    return total.low, total.high


# --- initializers -------------------------------------------------------------------------------

def initial_rows(int kind, float a, float b, uint64_t key, const uint64_t[::1] fids, size_t dim):
    """First values, shape (n, dim)."""
    cdef Initializer initializer
    initializer.kind = kind
    initializer.a = a
    initializer.b = b
    initializer.key = key
    cdef float[:, ::1] out = np.empty((fids.shape[0], dim), np.float32)
    cdef Py_ssize_t i
    with nogil:
        for i in range(fids.shape[0]):
            initializer_fill(&initializer, fids[i], &out[i, 0], dim)
    return np.asarray(out)


# --- optimizers ---------------------------------------------------------------------------------

cdef OptimizerParameters make_parameters(int kind, hyper) except *:
    cdef OptimizerParameters p
    assert len(hyper) <= 8
    p.kind = kind
    for i in range(8):
        p.values[i] = hyper[i] if i < len(hyper) else 0.0
    return p


def optimizer_state(int kind, hyper, size_t dim):
    """The state of a new row."""
    cdef OptimizerParameters p = make_parameters(kind, hyper)
    cdef float[::1] out = np.full(optimizer_state_floats(kind, dim) + 1, np.nan, np.float32)
    optimizer_initial_state(&p, &out[0], dim)
    return np.asarray(out)[:-1]


def optimizer_step(
    int kind,
    hyper,
    float[:, ::1] embeddings,
    float[:, ::1] states,
    const float[:, ::1] gradients,
    size_t dim,
    size_t embedding_offset=0,
    size_t state_offset=0,
):
    """One step, in place, of all rows. `states` needs a column even where there is no state."""
    cdef OptimizerParameters p = make_parameters(kind, hyper)
    cdef SliceSpan span
    cdef size_t rows = embeddings.shape[0]
    cdef optimizer_kernel_t kernel = optimizer_kernel(kind)
    assert kernel != NULL
    assert states.shape[0] == gradients.shape[0] == embeddings.shape[0]
    assert embedding_offset + dim <= <size_t>embeddings.shape[1] == <size_t>gradients.shape[1]
    assert state_offset + optimizer_state_floats(kind, dim) <= <size_t>states.shape[1]
    span.dim = dim
    span.embedding_offset = embedding_offset
    span.state_offset = state_offset
    cdef void** pointers = <void**>malloc(3 * (rows + 1) * sizeof(void*))
    cdef float** to_embeddings = <float**>pointers
    cdef float** to_states = to_embeddings + rows
    cdef const float** to_gradients = <const float**>(to_states + rows)
    cdef size_t i
    if pointers == NULL:
        raise MemoryError
    with nogil:
        for i in range(rows):
            to_embeddings[i] = &embeddings[i, 0]
            to_states[i] = &states[i, 0]
            to_gradients[i] = &gradients[i, 0]
        kernel(&p, &span, to_embeddings, to_states, to_gradients, rows)
    free(pointers)


# --- pages --------------------------------------------------------------------------------------

cdef class PagesDoor:
    """One pool of pieces; addresses as numbers."""

    cdef Pages pages

    def __cinit__(self):
        if pages_create(&self.pages) != STATUS_OK:
            raise MemoryError

    def __dealloc__(self):
        pages_destroy(&self.pages)

    def take(self):
        return <uintptr_t>pages_take(&self.pages)

    def give(self, uintptr_t piece):
        pages_give(&self.pages, <void*>piece)

    def take_part(self, uint32_t parts):
        return <uintptr_t>pages_take_part(&self.pages, parts)

    def give_part(self, uintptr_t part):
        pages_give_part(&self.pages, <void*>part)

    def spare_bytes(self):
        return pages_spare_bytes(&self.pages)

    def ready_bytes(self):
        return backer_ready_bytes(&self.pages.backer)

    def counts(self):
        """(pieces of all regions, those of them that are free and cost no memory)."""
        return self.pages.pieces_count, self.pages.dry_count

    def free(self):
        """The pieces that nobody has."""
        cdef uint32_t i
        return [<uintptr_t>self.pages.free[i] for i in range(self.pages.free_count)]

    def partial(self, uint32_t parts):
        """The pieces of so many parts with a free one, in order: (address, address before)."""
        cdef PieceHead* head = self.pages.partial[parts]
        found = []
        # A list that has become a ring ends as well.
        while head != NULL and len(found) <= <Py_ssize_t>self.pages.pieces_count:
            found.append((<uintptr_t>head, <uintptr_t>head.previous))
            head = head.next
        return found

    @staticmethod
    def sizes(uint32_t parts):
        """(bytes of a piece, bytes of one of its parts)."""
        return <size_t>PIECE_BYTES, part_bytes(parts)


# --- index --------------------------------------------------------------------------------------

cdef class IndexDoor:
    """The index of one shard; rows are all 1."""

    cdef Pages pages
    cdef Cuckoo index

    def __cinit__(self):
        if pages_create(&self.pages) != STATUS_OK:
            raise MemoryError
        if cuckoo_create(&self.index, &self.pages, 7) != STATUS_OK:
            raise MemoryError

    def __dealloc__(self):
        cuckoo_destroy(&self.index)
        pages_destroy(&self.pages)

    def insert(self, uint64_t fid):
        if cuckoo_insert(&self.index, fid, hash_fid(fid), 1) != STATUS_OK:
            raise MemoryError

    def erase(self, uint64_t fid):
        cuckoo_erase(&self.index, fid, hash_fid(fid))

    def shrink(self, uint64_t position):
        cuckoo_shrink(&self.index, position)

    def segment(self, uint64_t position):
        """(its first hash, moves, {fid: (bucket, cell)}) of the one at a hash."""
        cdef Segment* segment = cuckoo_segment(&self.index, position)
        cdef uint32_t width = 64 - SHARD_BITS - segment.depth
        cdef uint32_t i, cell
        cells = {
            segment.buckets[i].fids[cell]: (i, cell)
            for i in range(segment.buckets_count)
            for cell in range(BUCKET_CELLS)
            if bucket_has(&segment.buckets[i], cell)
        }
        return position >> width << width, segment.moves, cells


# --- sketch -------------------------------------------------------------------------------------

cdef class SketchDoor:
    """One Sketch; fids instead of hashes."""

    cdef Sketch sketch

    def __init__(self, capacity, error=0.01, window_s=100, count_max=255):
        sketch_destroy(&self.sketch)
        if sketch_create(&self.sketch, capacity, error, window_s, count_max) != STATUS_OK:
            raise MemoryError

    def __dealloc__(self):
        sketch_destroy(&self.sketch)

    def advance(self, int64_t now):
        sketch_advance(&self.sketch, now)

    def see(self, uint64_t fid, int64_t now):
        return sketch_see(&self.sketch, hash_fid(fid), now)

    def see_all(self, const uint64_t[::1] fids, int64_t now):
        """Sightings in order; the estimate at each."""
        cdef uint32_t[::1] out = np.empty(fids.shape[0], np.uint32)
        cdef Py_ssize_t i
        cdef Py_ssize_t ahead = 8
        with nogil:
            for i in range(fids.shape[0]):
                if i + ahead < fids.shape[0]:
                    sketch_prefetch(&self.sketch, hash_fid(fids[i + ahead]))
                out[i] = sketch_see(&self.sketch, hash_fid(fids[i]), now)
        return np.asarray(out)

    def estimate(self, uint64_t fid):
        return sketch_estimate(&self.sketch, hash_fid(fid))

    def error_estimate(self):
        return sketch_error_estimate(&self.sketch)

    def fill(self):
        return sketch_fill(&self.sketch)

    def size_bytes(self):
        return sketch_size_bytes(&self.sketch)

    def fields(self):
        """(width, bytes of a cell, largest count, start of the generation)."""
        cdef Sketch* s = &self.sketch
        return s.width, s.cell_bytes, s.count_max, s.start

    def occupied(self):
        """Cells in use by row, (current, previous)."""
        cdef uint32_t now = self.sketch.current
        return tuple(
            [self.sketch.occupied[g][row] for row in range(4)] for g in (now, now ^ 1)
        )

    def pack(self):
        cdef uint8_t[::1] out = np.empty(sketch_packed_bytes(&self.sketch), np.uint8)
        sketch_pack(&self.sketch, &out[0])
        return bytes(out)

    def unpack(self, const uint8_t[::1] data, bint add=False):
        """The status code."""
        return <int>sketch_unpack(
            &self.sketch, &data[0] if data.shape[0] else NULL, data.shape[0], add
        )

    def resize_counts(self, uint32_t count_max):
        """The status code."""
        return <int>sketch_resize_counts(&self.sketch, count_max)

    def freeze(self):
        """Take an instant; the header of its packed bytes, and how many cells follow, twice."""
        if sketch_freeze(&self.sketch) != STATUS_OK:
            raise MemoryError
        size = sketch_frozen_bytes(&self.sketch) - SKETCH_HEADER_BYTES
        return bytes(self.sketch.view.header[:SKETCH_HEADER_BYTES]), size // 2

    def frozen(self, uint32_t age, size_t start, size_t size):
        cdef uint8_t[::1] out = np.empty(size, np.uint8)
        sketch_frozen_read(&self.sketch, age, start, size, &out[0])
        return bytes(out)

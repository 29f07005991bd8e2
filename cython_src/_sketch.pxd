"""How often was an id seen lately: a count-min sketch with a window that moves in steps.

Two generations of `window_s` each, the current and the previous one; an estimate is the sum of
both. What was seen within the window is always in one of the two, so an estimate is never too low:
no id is admitted late. What is older than two windows is in neither.
Estimates are too high only for ids whose cells are shared in all rows (Cormode, Muthukrishnan
2005); a sighting raises only the cells that hold the minimum (Estan, Varghese 2002).
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from monolith_kv._frozen cimport Frozen
from monolith_kv._hashing cimport hash_mix, hash_range
from monolith_kv._types cimport status_t, unix_s_t

cdef extern from "prefetch.h":
    void MKV_PREFETCH(const void* address) noexcept nogil

cdef enum:
    SKETCH_ROWS = 4   # On disk: never change.
    SKETCH_HEADER_BYTES = 48   # of a packed sketch. On disk: never change.

cdef struct SketchView:
    # What a sketch was at one instant; see sketch_freeze.
    Frozen frozen               # its cells
    uint8_t* owned              # those cells, once the sketch has others; or NULL
    size_t generation_bytes
    size_t used_bytes           # of a generation
    uint32_t current
    uint8_t header[SKETCH_HEADER_BYTES]


cdef struct Sketch:
    # Not locked: guarded by the owner's lock, const functions included.
    uint8_t* cells              # both generations; NULL before sketch_create
    size_t generation_bytes     # from one generation to the other, whole pages
    uint64_t capacity           # distinct ids in a window that it was sized for
    uint32_t width              # cells in a row
    uint32_t cell_bytes         # 1 or 2, native byte order
    uint32_t count_max          # the largest threshold that counts can be held against
    uint32_t current            # which generation is counted in: 0 or 1
    unix_s_t window_s           # length of a generation
    unix_s_t start              # when the current generation began
    bint is_started             # False until the first sighting: `start` means nothing
    uint64_t occupied[2][4]     # cells that are not 0, by generation and row
    SketchView view


# Sized so that with `capacity` distinct ids in each window at most a share `error` of the ids is
# over-counted. count_max <= 65535. Memory is paged in as it is used.
cdef status_t sketch_create(
    Sketch* sketch, uint64_t capacity, double error, unix_s_t window_s, uint32_t count_max
) noexcept nogil
cdef void sketch_destroy(Sketch* sketch) noexcept nogil
# Take over the cells of `fresh`; a view stays of those before.
cdef void sketch_replace(Sketch* sketch, const Sketch* fresh) noexcept nogil

# Move the window on to `now`. A clock that goes back moves nothing.
cdef void sketch_advance(Sketch* sketch, unix_s_t now) noexcept nogil

# Count one sighting; the estimate with it. Saturates, at count_max or above.
cdef uint32_t sketch_see(Sketch* sketch, uint64_t hashed, unix_s_t now) noexcept nogil
cdef uint32_t sketch_estimate(const Sketch* sketch, uint64_t hashed) noexcept nogil

# Expected share of ids that are over-counted at the present fill.
cdef double sketch_error_estimate(const Sketch* sketch) noexcept nogil
# Share of cells in use in the fuller generation, 0..1.
cdef double sketch_fill(const Sketch* sketch) noexcept nogil
# Address space taken; what no sighting has touched costs no memory.
cdef size_t sketch_size_bytes(const Sketch* sketch) noexcept nogil

# The whole sketch as bytes, the same on every machine (mostly zeros: compress them).
cdef size_t sketch_packed_bytes(const Sketch* sketch) noexcept nogil
cdef void sketch_pack(const Sketch* sketch, uint8_t* out) noexcept nogil
# Replace the counts, or add to them. Cells may be of another size; if capacity, width or window
# differ, or the bytes make no sense: STATUS_BAD_DATA and nothing is changed.
cdef status_t sketch_unpack(
    Sketch* sketch, const uint8_t* data, size_t n, bint add
) noexcept nogil
# Take an instant, whose packed bytes may then be read while counting goes on. It copies nothing.
cdef status_t sketch_freeze(Sketch* sketch) noexcept nogil
# 0 where there is no view.
cdef size_t sketch_frozen_bytes(const Sketch* sketch) noexcept nogil
# Cells of the view's current generation (age 0) or the one before (1), from `start` on, which is a
# multiple of FROZEN_BLOCK_BYTES. Each once.
cdef void sketch_frozen_read(
    Sketch* sketch, uint32_t age, size_t start, size_t size_bytes, uint8_t* out) noexcept nogil
# End the view; again: nothing.
cdef void sketch_thaw(Sketch* sketch) noexcept nogil
# Make room for a larger threshold, keeping the counts. Never narrows cells.
cdef status_t sketch_resize_counts(Sketch* sketch, uint32_t count_max) noexcept nogil


cdef inline void sketch_cells(
    uint64_t hashed, uint32_t width, uint32_t* places
) noexcept nogil:
    """Place in each row. On disk: never change."""
    # Remixed, for the top bits of `hashed` are the same in a whole shard; four 32-bit halves.
    cdef uint64_t first = hash_mix(hashed ^ <uint64_t>0xC2B2AE3D27D4EB4FULL)
    cdef uint64_t second = hash_mix(hashed ^ <uint64_t>0x165667B19E3779F9ULL)
    places[0] = hash_range(first, width)
    places[1] = hash_range(first << 32, width)
    places[2] = hash_range(second, width)
    places[3] = hash_range(second << 32, width)


cdef inline void sketch_prefetch(const Sketch* sketch, uint64_t hashed) noexcept nogil:
    """Ask for the cells of an id that sketch_see will soon be called for."""
    cdef uint32_t places[SKETCH_ROWS]
    cdef uint8_t* cell
    cdef size_t row
    sketch_cells(hashed, sketch.width, places)
    for row in range(SKETCH_ROWS):
        cell = sketch.cells + (row * sketch.width + places[row]) * sketch.cell_bytes
        MKV_PREFETCH(cell)
        MKV_PREFETCH(cell + sketch.generation_bytes)

"""The count-min sketch behind the admission gate: counts, window, bytes."""

from libc.math cimport ceil, sqrt
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from monolith_kv._frozen cimport frozen_begin, frozen_end, frozen_read, frozen_save
from monolith_kv._types cimport STATUS_BAD_DATA, STATUS_OK, STATUS_OUT_OF_MEMORY
from monolith_kv._types cimport status_t, unix_s_t

cdef extern from *:
    """
    #include <string.h>
    #include <sys/mman.h>

    static void *sketch_map(size_t n)
    {
        void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        return p == MAP_FAILED ? NULL : p;
    }

    /* Only Linux promises zeros after it; refused for locked pages. */
    static void sketch_zero(void *p, size_t n)
    {
    #ifdef __linux__
        if (madvise(p, n, MADV_DONTNEED) == 0)
            return;
    #endif
        memset(p, 0, n);
    }
    """
    void* sketch_map(size_t n) noexcept nogil
    void sketch_zero(void* p, size_t n) noexcept nogil
    int munmap(void* p, size_t n) noexcept nogil

cdef enum:
    PAGE_BYTES = 65536            # The largest page of any machine.
    COUNT_MAX_NARROW = 255
    COUNT_MAX_WIDE = 65535
    # The header of a packed sketch, little-endian. On disk: never renumber.
    AT_MAGIC = 0                  # u32
    AT_VERSION = 4                # u32
    AT_CELL_BYTES = 8             # u32
    AT_WIDTH = 12                 # u32
    AT_CAPACITY = 16              # u64
    AT_WINDOW = 24                # i64
    AT_START = 32                 # i64
    AT_COUNT_MAX = 40             # u32
    AT_IS_STARTED = 44            # u32
    MAGIC = 0x4B534B4D            # "MKSK"
    VERSION = 1

# Far from where sums of times overflow, and longer than any clock runs: 36 billion years.
cdef unix_s_t TIME_MAX = <unix_s_t>1 << 60


cdef status_t sketch_create(
    Sketch* sketch, uint64_t capacity, double error, unix_s_t window_s, uint32_t count_max
) noexcept nogil:
    sketch.cells = NULL
    memset(&sketch.view, 0, sizeof(SketchView))
    # A shard does not get exactly its part of the ids: leave room for four standard deviations.
    cdef double ids = <double>capacity + 4.0 * sqrt(<double>capacity) + 16.0
    cdef double width = ceil(ids / fill_per_row(error))
    if count_max > COUNT_MAX_WIDE or not width < 4294967295.0:
        return STATUS_OUT_OF_MEMORY
    sketch.capacity = capacity
    sketch.width = <uint32_t>width
    sketch.count_max = count_max
    sketch.cell_bytes = 1 if count_max <= COUNT_MAX_NARROW else 2
    sketch.window_s = clamp_time(window_s)
    if sketch.window_s < 1:
        sketch.window_s = 1
    sketch.current = 0
    return sketch_map_cells(sketch)


cdef double fill_per_row(double error) noexcept nogil:
    """Ids per cell at which the four cells of a new id are all taken with probability error / 2.

    A share 1 - exp(-x) of a row's cells is taken by x ids per cell, so x = -ln(1 - t) with
    t = (error / 2) ** (1/4); half the error for each generation. The logarithm is a series of
    exactly rounded steps: the width is on disk, and log() differs between machines.
    """
    cdef double taken = sqrt(sqrt(error / 2.0))
    cdef double y = taken / (2.0 - taken)    # -ln(1 - t) = 2 artanh(t / (2 - t))
    cdef double power = y
    cdef double total = 0.0
    cdef int k
    for k in range(1, 400, 2):               # y < 0.73: the rest is below 1e-50.
        total += power / k
        power *= y * y
    return 2.0 * total


cdef status_t sketch_map_cells(Sketch* sketch) noexcept nogil:
    """Give `sketch` cells by its width and cell_bytes, all 0, and no start."""
    cdef size_t used = <size_t>sketch.width * SKETCH_ROWS * sketch.cell_bytes
    sketch.generation_bytes = (used + PAGE_BYTES - 1) // PAGE_BYTES * PAGE_BYTES
    sketch.cells = <uint8_t*>sketch_map(2 * sketch.generation_bytes)
    sketch.is_started = False
    sketch.start = 0
    forget_occupied(sketch, 0)
    forget_occupied(sketch, 1)
    return STATUS_OK if sketch.cells != NULL else STATUS_OUT_OF_MEMORY


cdef void sketch_destroy(Sketch* sketch) noexcept nogil:
    sketch_thaw(sketch)
    if sketch.cells != NULL:
        munmap(sketch.cells, 2 * sketch.generation_bytes)
        sketch.cells = NULL


cdef void sketch_replace(Sketch* sketch, const Sketch* fresh) noexcept nogil:
    cdef SketchView view = sketch.view
    if view.frozen.live != NULL and view.frozen.live == sketch.cells:
        view.owned = sketch.cells
        sketch.cells = NULL
    memset(&sketch.view, 0, sizeof(SketchView))
    sketch_destroy(sketch)
    sketch[0] = fresh[0]
    sketch.view = view


# --- a view -------------------------------------------------------------------------------------

cdef status_t sketch_freeze(Sketch* sketch) noexcept nogil:
    cdef SketchView* view = &sketch.view
    sketch_thaw(sketch)
    if frozen_begin(
            &view.frozen, sketch.cells, 2 * sketch.generation_bytes) != STATUS_OK:
        return STATUS_OUT_OF_MEMORY
    view.generation_bytes = sketch.generation_bytes
    view.used_bytes = <size_t>SKETCH_ROWS * sketch.width * sketch.cell_bytes
    view.current = sketch.current
    header_pack(sketch, view.header)
    return STATUS_OK


cdef size_t sketch_frozen_bytes(const Sketch* sketch) noexcept nogil:
    if sketch.view.frozen.live == NULL:
        return 0
    return SKETCH_HEADER_BYTES + 2 * sketch.view.used_bytes


cdef void sketch_frozen_read(
    Sketch* sketch, uint32_t age, size_t start, size_t size_bytes, uint8_t* out
) noexcept nogil:
    # Cells lie in memory as in a file: both are little-endian.
    frozen_read(
        &sketch.view.frozen, (sketch.view.current ^ age) * sketch.view.generation_bytes + start,
        size_bytes, out)


cdef void sketch_thaw(Sketch* sketch) noexcept nogil:
    if sketch.view.owned != NULL:
        munmap(sketch.view.owned, 2 * sketch.view.generation_bytes)
    frozen_end(&sketch.view.frozen)
    memset(&sketch.view, 0, sizeof(SketchView))


cdef inline void before_change(
    Sketch* sketch, uint32_t generation, size_t offset, size_t size_bytes
) noexcept nogil:
    """Keep cells as they are for a view of them."""
    if sketch.view.frozen.live == sketch.cells:
        frozen_save(
            &sketch.view.frozen, generation * sketch.generation_bytes + offset, size_bytes)


# --- the window ---------------------------------------------------------------------------------

cdef inline unix_s_t clamp_time(unix_s_t time) noexcept nogil:
    if time > TIME_MAX:
        return TIME_MAX
    return time if time > -TIME_MAX else -TIME_MAX


cdef void forget_occupied(Sketch* sketch, uint32_t generation) noexcept nogil:
    cdef size_t row
    for row in range(SKETCH_ROWS):
        sketch.occupied[generation][row] = 0


cdef void generation_clear(Sketch* sketch, uint32_t generation) noexcept nogil:
    if sketch.occupied[generation][0] == 0:
        return    # Each sighting counts in every row: if one row is empty, all are.
    before_change(sketch, generation, 0, sketch.generation_bytes)
    sketch_zero(sketch.cells + generation * sketch.generation_bytes, sketch.generation_bytes)
    forget_occupied(sketch, generation)


cdef void sketch_advance(Sketch* sketch, unix_s_t now) noexcept nogil:
    if not sketch.is_started:
        return
    now = clamp_time(now)
    cdef unix_s_t windows
    if now < sketch.start - 2 * sketch.window_s:
        # The clock had been far ahead. Waiting until it is there again could take for ever.
        sketch.start = now
        return
    if now < sketch.start + sketch.window_s:
        return
    windows = (now - sketch.start) // sketch.window_s
    sketch.start += windows * sketch.window_s
    sketch.current ^= 1
    generation_clear(sketch, sketch.current)
    if windows > 1:
        generation_clear(sketch, sketch.current ^ 1)


# --- counts -------------------------------------------------------------------------------------

cdef inline uint32_t cell_get(const uint8_t* cells, uint32_t cell_bytes, size_t i) noexcept nogil:
    if cell_bytes == 1:
        return cells[i]
    return (<const uint16_t*>cells)[i]


cdef inline void cell_set(
    uint8_t* cells, uint32_t cell_bytes, size_t i, uint32_t count
) noexcept nogil:
    if cell_bytes == 1:
        cells[i] = <uint8_t>count
    else:
        (<uint16_t*>cells)[i] = <uint16_t>count


cdef inline uint32_t cell_limit(uint32_t cell_bytes) noexcept nogil:
    return COUNT_MAX_NARROW if cell_bytes == 1 else COUNT_MAX_WIDE


cdef inline uint32_t cells_minimum(
    const Sketch* sketch, const uint8_t* cells, const uint32_t* places
) noexcept nogil:
    cdef uint32_t least = COUNT_MAX_WIDE
    cdef uint32_t count
    cdef size_t row
    for row in range(SKETCH_ROWS):
        count = cell_get(cells, sketch.cell_bytes, row * sketch.width + places[row])
        least = count if count < least else least
    return least


cdef uint32_t sketch_see(Sketch* sketch, uint64_t hashed, unix_s_t now) noexcept nogil:
    cdef uint32_t places[SKETCH_ROWS]
    cdef uint8_t* cells
    cdef uint32_t before, least
    cdef size_t row, i
    if not sketch.is_started:
        sketch.is_started = True
        sketch.start = clamp_time(now)
    sketch_advance(sketch, now)
    sketch_cells(hashed, sketch.width, places)
    before = cells_minimum(
        sketch, sketch.cells + (sketch.current ^ 1) * sketch.generation_bytes, places
    )
    cells = sketch.cells + sketch.current * sketch.generation_bytes
    least = cells_minimum(sketch, cells, places)
    if least == cell_limit(sketch.cell_bytes):
        return before + least
    for row in range(SKETCH_ROWS):
        i = row * sketch.width + places[row]
        if cell_get(cells, sketch.cell_bytes, i) == least:
            before_change(
                sketch, sketch.current, i * sketch.cell_bytes, sketch.cell_bytes)
            cell_set(cells, sketch.cell_bytes, i, least + 1)
            sketch.occupied[sketch.current][row] += least == 0
    return before + least + 1


cdef uint32_t sketch_estimate(const Sketch* sketch, uint64_t hashed) noexcept nogil:
    cdef uint32_t places[SKETCH_ROWS]
    sketch_cells(hashed, sketch.width, places)
    return (
        cells_minimum(sketch, sketch.cells, places)
        + cells_minimum(sketch, sketch.cells + sketch.generation_bytes, places)
    )


cdef double sketch_error_estimate(const Sketch* sketch) noexcept nogil:
    cdef double none_taken = 1.0
    cdef double all_taken
    cdef size_t generation, row
    for generation in range(2):
        all_taken = 1.0
        for row in range(SKETCH_ROWS):
            all_taken *= <double>sketch.occupied[generation][row] / <double>sketch.width
        none_taken *= 1.0 - all_taken
    return 1.0 - none_taken


cdef double sketch_fill(const Sketch* sketch) noexcept nogil:
    cdef uint64_t most = 0
    cdef uint64_t total
    cdef size_t generation, row
    for generation in range(2):
        total = 0
        for row in range(SKETCH_ROWS):
            total += sketch.occupied[generation][row]
        most = total if total > most else most
    return <double>most / (<double>sketch.width * SKETCH_ROWS)


cdef size_t sketch_size_bytes(const Sketch* sketch) noexcept nogil:
    return 2 * sketch.generation_bytes if sketch.cells != NULL else 0


# --- bytes --------------------------------------------------------------------------------------

cdef inline uint64_t load_le(const uint8_t* data, size_t n) noexcept nogil:
    cdef uint64_t value = 0
    cdef size_t i
    for i in range(n):
        value |= <uint64_t>data[i] << (8 * i)
    return value


cdef inline void store_le(uint8_t* out, uint64_t value, size_t n) noexcept nogil:
    cdef size_t i
    for i in range(n):
        out[i] = <uint8_t>(value >> (8 * i))


cdef size_t sketch_packed_bytes(const Sketch* sketch) noexcept nogil:
    return SKETCH_HEADER_BYTES + <size_t>2 * SKETCH_ROWS * sketch.width * sketch.cell_bytes


cdef void header_pack(const Sketch* sketch, uint8_t* out) noexcept nogil:
    store_le(out + AT_MAGIC, MAGIC, 4)
    store_le(out + AT_VERSION, VERSION, 4)
    store_le(out + AT_CELL_BYTES, sketch.cell_bytes, 4)
    store_le(out + AT_WIDTH, sketch.width, 4)
    store_le(out + AT_CAPACITY, sketch.capacity, 8)
    store_le(out + AT_WINDOW, <uint64_t>sketch.window_s, 8)
    store_le(out + AT_START, <uint64_t>sketch.start, 8)
    store_le(out + AT_COUNT_MAX, sketch.count_max, 4)
    store_le(out + AT_IS_STARTED, 1 if sketch.is_started else 0, 4)


cdef void sketch_pack(const Sketch* sketch, uint8_t* out) noexcept nogil:
    cdef size_t cells = <size_t>SKETCH_ROWS * sketch.width
    cdef size_t age, i
    cdef const uint8_t* source
    header_pack(sketch, out)
    out += SKETCH_HEADER_BYTES
    for age in range(2):
        source = sketch.cells + (sketch.current ^ age) * sketch.generation_bytes
        for i in range(cells):
            store_le(out, cell_get(source, sketch.cell_bytes, i), sketch.cell_bytes)
            out += sketch.cell_bytes


cdef bint header_fits(const Sketch* sketch, const uint8_t* data, size_t n) noexcept nogil:
    cdef uint64_t cell_bytes, is_started, count_max
    cdef unix_s_t start
    if n < SKETCH_HEADER_BYTES:
        return False
    if load_le(data + AT_MAGIC, 4) != MAGIC or load_le(data + AT_VERSION, 4) != VERSION:
        return False
    if load_le(data + AT_WIDTH, 4) != sketch.width:
        return False
    if load_le(data + AT_CAPACITY, 8) != sketch.capacity:
        return False
    if load_le(data + AT_WINDOW, 8) != <uint64_t>sketch.window_s:
        return False
    cell_bytes = load_le(data + AT_CELL_BYTES, 4)
    if cell_bytes != 1 and cell_bytes != 2:
        return False
    count_max = load_le(data + AT_COUNT_MAX, 4)
    if count_max > cell_limit(<uint32_t>cell_bytes):
        return False
    is_started = load_le(data + AT_IS_STARTED, 4)
    start = <unix_s_t>load_le(data + AT_START, 8)
    if is_started > 1 or start != clamp_time(start) or (is_started == 0 and start != 0):
        return False
    return n == SKETCH_HEADER_BYTES + <size_t>2 * SKETCH_ROWS * sketch.width * cell_bytes


cdef inline uint32_t count_convert(
    uint32_t count, uint32_t from_bytes, uint32_t to_bytes
) noexcept nogil:
    """Carry a count into a cell of another size. A full cell stands for any number: it stays so."""
    if from_bytes < to_bytes and count == COUNT_MAX_NARROW:
        return COUNT_MAX_WIDE
    return count if count < cell_limit(to_bytes) else cell_limit(to_bytes)


cdef void generation_add(
    Sketch* sketch, uint32_t generation, const uint8_t* data, uint32_t data_bytes
) noexcept nogil:
    cdef uint8_t* cells = sketch.cells + generation * sketch.generation_bytes
    cdef uint32_t limit = cell_limit(sketch.cell_bytes)
    cdef uint32_t count, before
    cdef size_t row, i, place
    before_change(sketch, generation, 0, sketch.generation_bytes)
    for row in range(SKETCH_ROWS):
        for place in range(sketch.width):
            i = row * sketch.width + place
            count = <uint32_t>load_le(data + i * data_bytes, data_bytes)
            if count == 0:
                continue    # Leaves untouched memory untouched.
            count = count_convert(count, data_bytes, sketch.cell_bytes)
            before = cell_get(cells, sketch.cell_bytes, i)
            sketch.occupied[generation][row] += before == 0
            count += before
            cell_set(cells, sketch.cell_bytes, i, count if count < limit else limit)


cdef status_t sketch_unpack(
    Sketch* sketch, const uint8_t* data, size_t n, bint add
) noexcept nogil:
    cdef uint32_t data_bytes
    cdef unix_s_t start, age
    cdef const uint8_t* current
    cdef const uint8_t* previous
    if not header_fits(sketch, data, n):
        return STATUS_BAD_DATA
    if not add:
        generation_clear(sketch, 0)
        generation_clear(sketch, 1)
        sketch.is_started = False
        sketch.start = 0
    if load_le(data + AT_IS_STARTED, 4) == 0:
        return STATUS_OK
    start = <unix_s_t>load_le(data + AT_START, 8)
    data_bytes = <uint32_t>load_le(data + AT_CELL_BYTES, 4)
    current = data + SKETCH_HEADER_BYTES
    previous = current + <size_t>SKETCH_ROWS * sketch.width * data_bytes
    if not sketch.is_started:
        sketch.is_started = True
        sketch.start = start
    if start >= sketch.start:
        # The later start: with the earlier one, counts would be forgotten before their window ends.
        sketch_advance(sketch, start)
        sketch.start = start
        age = 0
    else:
        age = (sketch.start - start) // sketch.window_s
    if age == 0:
        generation_add(sketch, sketch.current, current, data_bytes)
        generation_add(sketch, sketch.current ^ 1, previous, data_bytes)
    elif age == 1:
        generation_add(sketch, sketch.current ^ 1, current, data_bytes)
    return STATUS_OK


cdef status_t sketch_resize_counts(Sketch* sketch, uint32_t count_max) noexcept nogil:
    cdef Sketch wide
    cdef uint32_t generation, count
    cdef size_t i
    if count_max > COUNT_MAX_WIDE:
        return STATUS_BAD_DATA
    if count_max <= cell_limit(sketch.cell_bytes):
        sketch.count_max = count_max
        return STATUS_OK
    wide = sketch[0]
    wide.cell_bytes = 2
    wide.count_max = count_max
    if sketch_map_cells(&wide) != STATUS_OK:
        return STATUS_OUT_OF_MEMORY
    for generation in range(2):
        for i in range(<size_t>SKETCH_ROWS * sketch.width):
            count = cell_get(sketch.cells + generation * sketch.generation_bytes, 1, i)
            if count != 0:
                cell_set(
                    wide.cells + generation * wide.generation_bytes, 2, i,
                    count_convert(count, 1, 2),
                )
    # The cells are the same ones, and so is the window.
    wide.occupied = sketch.occupied
    wide.start = sketch.start
    wide.is_started = sketch.is_started
    sketch_replace(sketch, &wide)
    return STATUS_OK

"""A growing array of bytes for nogil code: what a batch collects under a lock. All inline."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from monolith_kv._types cimport STATUS_OK, STATUS_OUT_OF_MEMORY, status_t

cdef extern from "buffer.h":
    uint8_t* mkv_bytes_grow(void* data, size_t old, size_t size) noexcept nogil
    void mkv_bytes_free(void* data, size_t size) noexcept nogil

cdef struct Buffer:
    uint8_t* data
    size_t count       # bytes in use
    size_t capacity


cdef inline void buffer_init(Buffer* buffer) noexcept nogil:
    buffer.data = NULL
    buffer.count = 0
    buffer.capacity = 0


cdef inline void buffer_free(Buffer* buffer) noexcept nogil:
    mkv_bytes_free(buffer.data, buffer.capacity)
    buffer_init(buffer)


cdef inline status_t buffer_reserve(Buffer* buffer, size_t more) noexcept nogil:
    """Make room for `more` bytes, so that appending them cannot fail."""
    cdef size_t capacity = buffer.capacity
    cdef uint8_t* data
    if buffer.count + more <= capacity:
        return STATUS_OK
    # By an eighth: realloc moves large buffers by remapping pages, and the list of touched rows is
    # a part of what a row costs.
    capacity += capacity // 8
    if capacity < buffer.count + more:
        capacity = buffer.count + more
    if capacity < 256:
        capacity = 256
    data = mkv_bytes_grow(buffer.data, buffer.capacity, capacity)
    if data == NULL:
        return STATUS_OUT_OF_MEMORY
    buffer.data = data
    buffer.capacity = capacity
    return STATUS_OK


cdef inline uint8_t* buffer_extend(Buffer* buffer, size_t more) noexcept nogil:
    """The next `more` bytes, which were reserved."""
    cdef uint8_t* place = buffer.data + buffer.count
    buffer.count += more
    return place


cdef inline void buffer_append_u32(Buffer* buffer, uint32_t value) noexcept nogil:
    (<uint32_t*>buffer_extend(buffer, sizeof(uint32_t)))[0] = value


cdef inline void buffer_append_u64(Buffer* buffer, uint64_t value) noexcept nogil:
    (<uint64_t*>buffer_extend(buffer, sizeof(uint64_t)))[0] = value


cdef inline status_t buffer_note_u64(Buffer* buffer, uint64_t value) noexcept nogil:
    """Append where nobody has reserved."""
    if buffer_reserve(buffer, sizeof(uint64_t)) != STATUS_OK:
        return STATUS_OUT_OF_MEMORY
    buffer_append_u64(buffer, value)
    return STATUS_OK

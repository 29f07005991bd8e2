"""CRC-32C (Castagnoli): the checksum of every record on disk and on the wire."""

from libc.stdint cimport uint8_t, uint32_t


# The checksum of `n` more bytes; `crc` is that of the bytes before them, 0 at the start.
cdef uint32_t crc32c_update(uint32_t crc, const uint8_t* data, size_t n) noexcept nogil

# The same by tables, as on a machine without CRC instructions. For tests.
cdef uint32_t crc32c_update_portable(uint32_t crc, const uint8_t* data, size_t n) noexcept nogil

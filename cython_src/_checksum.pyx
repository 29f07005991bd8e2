"""CRC-32C (Castagnoli) by the fastest means that this machine has; see crc32c.h."""

import numpy as np

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint32_t

cdef extern from "crc32c.h" nogil:
    void crc32c_setup() noexcept
    uint32_t crc32c_extend(uint32_t crc, const uint8_t* data, size_t n) noexcept
    uint32_t crc32c_extend_by_tables(uint32_t crc, const uint8_t* data, size_t n) noexcept

cdef enum:
    # Below it, giving the GIL away and getting it back costs more than the checksum.
    GIL_BYTES_MIN = 4096

crc32c_setup()


def crc32c(data, uint32_t value=0):
    """Compute the CRC-32C of `data`.

    Parameters
    ----------
    data : buffer, C-contiguous
        Bytes, an array, a memoryview: its bytes as they lie in memory.
    value : int, 0..2**32-1
        The checksum of what came before; 0 at the start.

    Returns
    -------
    int
        The checksum of both together.

    Raises
    ------
    TypeError
        `data` has no buffer.
    ValueError, BufferError
        `data` is not contiguous.
    OverflowError
        `value` is out of range.

    Notes
    -----
    Releases the GIL for all but small buffers.

    Examples
    --------
    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    cdef Py_buffer view
    cdef uint32_t crc
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        if view.len < GIL_BYTES_MIN:
            crc = crc32c_extend(value, <const uint8_t*>view.buf, <size_t>view.len)
        else:
            with nogil:
                crc = crc32c_extend(value, <const uint8_t*>view.buf, <size_t>view.len)
    finally:
        PyBuffer_Release(&view)
    return crc


def crc32c_each(const uint8_t[:, ::1] rows, size_t size, uint32_t value):
    """Compute the CRC-32C of the first `size` bytes of each row; uint32, shape (n,)."""
    cdef Py_ssize_t i
    cdef uint32_t[::1] out
    if size > <size_t>rows.shape[1]:
        raise ValueError(f"rows have {rows.shape[1]} bytes, asked for {size}")
    made = np.empty(rows.shape[0], np.uint32)
    out = made
    with nogil:
        for i in range(rows.shape[0]):
            out[i] = crc32c_extend(value, &rows[i, 0], size)
    return made


cdef uint32_t crc32c_update(uint32_t crc, const uint8_t* data, size_t n) noexcept nogil:
    return crc32c_extend(crc, data, n)


cdef uint32_t crc32c_update_portable(uint32_t crc, const uint8_t* data, size_t n) noexcept nogil:
    return crc32c_extend_by_tables(crc, data, n)

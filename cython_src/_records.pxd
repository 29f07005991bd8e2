"""Rows as arrays of records: the part of TableCore that storage and overflow speak to."""

from libc.stdint cimport uint8_t, uint64_t

from monolith_kv._core cimport Core
from monolith_kv._rowfile cimport RowTarget


cdef class Records(Core):
    cdef object record_fids(self, const uint8_t[::1] records)
    cdef object read_rows(self, const uint64_t[::1] ids, const RowTarget* target)

"""Rows as arrays of records: the part of TableCore that storage and overflow speak to."""

from libc.stdint cimport uint8_t

from monolith_kv._core cimport Core


cdef class Records(Core):
    cdef object record_fids(self, const uint8_t[::1] records)

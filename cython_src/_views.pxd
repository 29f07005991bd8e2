"""Views of one instant: the part of TableCore that seals and snapshots speak to."""

from libc.stdint cimport uint8_t

from monolith_kv._records cimport Records


cdef class Views(Records):
    cdef object claim(self, const uint8_t[::1] records, bint is_seal)
    cdef object frozen_gate(self, size_t number)

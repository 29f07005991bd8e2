"""The invariants of a table."""

from monolith_kv._core cimport Core

# What does not hold, in words.
cdef list core_problems(Core core)

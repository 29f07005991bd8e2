"""Regions of memory, and a thread that backs them before they are needed.

The first write to a huge page has the kernel clear all of it, which may take longer than a whole
call. So the regions that a growing table will need next are written to ahead of need, by a thread
of its own that sleeps otherwise. Where growth is faster than that, the caller gets a region of
small pages, which cost it a little at a time; the thread makes them one huge page later.
"""

from libc.stdint cimport uint32_t

from monolith_kv._thread cimport pthread_cond_t, pthread_mutex_t, pthread_t
from monolith_kv._types cimport status_t

cdef enum:
    REGION_BYTES = 2097152
    READY_MAX = 4

cdef struct Backer:
    pthread_mutex_t lock
    pthread_cond_t wanted
    pthread_t thread
    bint is_running
    bint is_ending
    int owner                  # process that has the thread; a forked child has none
    uint32_t ready_wanted
    uint32_t ready_count
    char* ready[READY_MAX]     # backed, and nobody's
    uint32_t loose_count
    uint32_t loose_capacity
    char** loose               # in use, of small pages

cdef status_t backer_create(Backer* backer) noexcept nogil
cdef void backer_destroy(Backer* backer) noexcept nogil
# A new region, aligned to its size; NULL where memory lacks. From now on `ahead` are kept ready.
# One that will be `filled` at once is a huge page from the start, whoever has to wait for that.
cdef char* backer_region(Backer* backer, uint32_t ahead, bint filled) noexcept nogil
# Regions that are given back in part keep their small pages: a huge one would be whole again.
cdef void backer_forget_loose(Backer* backer) noexcept nogil
cdef void region_unmap(char* region) noexcept nogil
cdef size_t backer_ready_bytes(Backer* backer) noexcept nogil

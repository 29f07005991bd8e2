"""Changes in steps, and the thread that helps with them. See monolith_kv/_table.pyi.

How a large push in "sync" goes: the helper sums gradients and sorts ids while the caller computes
the record's checksum and checks the numbers, asks for rows while the caller writes the record, and
makes the push while the caller flushes. What is left then the caller does.
"""

cimport cython

from libc.stdint cimport uint64_t

from monolith_kv._change cimport (
    Change,
    change_begin,
    change_check,
    change_create,
    change_destroy,
    change_run,
    change_set,
)
from monolith_kv._core cimport Barrier, Core, fids_of, raise_status, whole_seconds
from monolith_kv._helper cimport (
    HelperThread,
    Work,
    helper_cool,
    helper_create,
    helper_destroy,
    helper_finish,
    helper_go,
    helper_is_here,
    helper_offer,
    helper_settle,
)
from monolith_kv._types cimport STATUS_OK, status_t, unix_s_t
from monolith_kv._write cimport shards_warm

cdef extern from "pythread.h":
    unsigned long PyThread_get_thread_ident()

cdef enum:
    # A push of as many ids takes some 0.3 ms, to wake a thread 0.05 to 0.1.
    HELPED_IDS = 2048


cdef class Helper:
    """A thread that begins with the first work that it is offered, and ends with this object."""

    cdef HelperThread thread
    cdef bint is_created
    cdef size_t ids_min

    def __cinit__(self, size_t ids_min=HELPED_IDS):
        self.ids_min = ids_min
        if helper_create(&self.thread) != STATUS_OK:
            raise MemoryError("no memory for a lock")
        self.is_created = True

    def __dealloc__(self):
        if self.is_created:
            with nogil:
                helper_destroy(&self.thread)


cdef void work_prepare(void* change) noexcept nogil:
    change_create(<Change*>change)


cdef void work_warm(void* what, const int* is_cool) noexcept nogil:
    cdef Change* change = <Change*>what
    if change.status == STATUS_OK:
        shards_warm(change.shards, &change.batch, is_cool)


cdef void work_make(void* change) noexcept nogil:
    change_run(<Change*>change)


@cython.no_gc_clear
cdef class PreparedChange:
    """A push or an upsert in steps."""

    cdef Core core
    cdef Barrier barrier
    cdef Helper helper
    cdef Change change
    cdef Work work
    cdef bint is_open              # not finished yet
    cdef bint is_offered
    cdef bint is_settled
    cdef status_t status           # once it is settled: whether it can be made
    cdef readonly bint is_started
    # What `change` points into.
    cdef const uint64_t[::1] ids
    cdef const float[:, ::1] values

    def __init__(
        self, Core core not None, const uint64_t[::1] ids, const float[:, ::1] values,
        bint is_upsert, Helper helper=None
    ):
        self.core, self.barrier, self.helper = core, core.barrier, helper
        self.ids, self.values = ids, values
        if ids.shape[0] == 0:
            return
        change_set(
            &self.change, core.shards, fids_of(ids), &values[0, 0], ids.shape[0], is_upsert)
        self.work = Work(work_prepare, work_warm, work_make, &self.change)
        self.is_open = True
        if helper is not None and self.change.count >= helper.ids_min:
            with nogil:
                self.is_offered = helper_offer(&self.helper.thread, &self.work)

    def settle(self):
        if self.is_open and not self.is_settled:
            with nogil:
                self.status = change_check(&self.change)
                if self.is_offered:
                    helper_settle(&self.helper.thread)
                else:
                    change_create(&self.change)
                if self.status == STATUS_OK:
                    self.status = self.change.status
                self.is_settled = True
        raise_status(self.status)

    def start(self, double now):
        cdef unix_s_t now_s = whole_seconds(now)
        cdef status_t status
        self.settle()
        if not self.is_open or self.is_started:
            return
        with nogil:
            if self.is_offered:
                helper_cool(&self.helper.thread)
            self.barrier.enter()
            status = change_begin(&self.change, now_s)
            if status != STATUS_OK:
                self.barrier.leave()
            elif self.is_offered:
                helper_go(&self.helper.thread)
        raise_status(status)
        self.is_started = True
        self.barrier.change = self
        self.barrier.change_thread = PyThread_get_thread_ident()

    def finish(self):
        self.end()

    cdef int end(self) except -1:
        if not self.is_open:
            return 0
        self.is_open = False
        if self.is_started:
            self.barrier.change = None
        if self.is_offered and not helper_is_here(&self.helper.thread):
            return 0  # A fork within a call: whoever had begun with it is not there.
        with nogil:
            if self.is_started:
                change_run(&self.change)
            if self.is_offered:
                helper_finish(&self.helper.thread)
            if self.is_started:
                self.barrier.leave()
            change_destroy(&self.change)
        return 0

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.end()

    def __dealloc__(self):
        self.end()

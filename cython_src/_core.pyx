"""What a table is made of: its life, its settings, its figures. See _core.pxd."""

import sys

import numpy as np

from cpython.buffer cimport PyBuffer_FillInfo
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from monolith_kv._arena cimport arena_size_bytes
from monolith_kv._backing cimport backer_ready_bytes
from monolith_kv._batch cimport Batch, batch_create
from monolith_kv._buffer cimport Buffer, buffer_free, buffer_init, buffer_reserve
from monolith_kv._codec cimport record_size_bytes
from monolith_kv._digest cimport RowDigest, digest_add
from monolith_kv._hashing cimport SHARDS, SHARD_BITS, hash_mix
from monolith_kv._lock cimport (
    lock_alone,
    lock_create,
    lock_destroy,
    lock_leave,
    lock_shared,
    lock_try_shared,
)
from monolith_kv._optimizers cimport optimizer_kernel, optimizer_state_floats
from monolith_kv._pages cimport PIECE_BYTES, pages_create, pages_destroy, pages_spare_bytes
from monolith_kv._rowfile cimport rowfiles_destroy
from monolith_kv._shard cimport (
    MKV_ADD64,
    MKV_LOAD64,
    SLOTS,
    Counters,
    SlicePolicy,
    locked_sum_all,
    shard_create,
    shard_destroy,
)
from monolith_kv._sketch cimport (
    Sketch,
    sketch_create,
    sketch_destroy,
    sketch_error_estimate,
    sketch_fill,
    sketch_replace,
    sketch_resize_counts,
    sketch_size_bytes,
)
from monolith_kv._types cimport (
    STATUS_FULL,
    STATUS_NOT_FINITE,
    STATUS_NOT_NUMBERS,
    STATUS_OK,
    STATUS_OUT_OF_MEMORY,
    fid_t,
    status_t,
)

from monolith_kv.errors import StoreFullError

if sys.byteorder != "little":
    raise ImportError("monolith_kv needs a little-endian machine: files hold floats as they lie")


cdef int raise_status(status_t status) except -1:
    if status == STATUS_OK:
        return 0
    if status & STATUS_OUT_OF_MEMORY:
        raise MemoryError("no memory for more rows")
    if status & STATUS_NOT_NUMBERS:
        raise ValueError(
            "gradients and rows must be finite, got NaN or infinity; nothing was applied")
    if status & STATUS_NOT_FINITE:
        raise ValueError("the gradients of an id add up to more than float32 holds; clip them")
    if status & STATUS_FULL:
        raise StoreFullError("no room for new ids: raise memory_limit or overflow_limit, or expire")
    raise ValueError("bytes that this table did not write, or not under the settings it has now")


cdef class Owned:
    """A Buffer that now belongs to an array: it is freed with it, and never copied."""

    cdef Buffer buffer

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self.buffer.data, <Py_ssize_t>self.buffer.count, 0, flags)

    def __dealloc__(self):
        MKV_ADD64(&in_hand, 0 - <uint64_t>self.buffer.capacity)
        buffer_free(&self.buffer)


cdef uint64_t in_hand = 0


cdef extern from *:
    """
    #include <stdlib.h>
    #ifdef __GLIBC__
    #include <malloc.h>
    /* It keeps up to 64 MiB of what was freed for whoever asks next, a thread each. */
    static void mkv_give_back(void) { malloc_trim(0); }
    #else
    static void mkv_give_back(void) {}
    #endif
    """
    void mkv_give_back() nogil


def give_back_freed():
    with nogil:
        mkv_give_back()


def in_hand_bytes():
    return MKV_LOAD64(&in_hand)


def in_hand_block(size_t size_bytes):
    cdef Buffer block
    buffer_init(&block)
    raise_status(buffer_reserve(&block, size_bytes))
    block.count = size_bytes
    return take_bytes(&block)


cdef int raise_freeing(
    status_t status, Buffer* first, Buffer* second, Buffer* third
) except -1:
    if status != STATUS_OK:
        buffer_free(first)
        if second != NULL:
            buffer_free(second)
        if third != NULL:
            buffer_free(third)
    return raise_status(status)


cdef object take_bytes(Buffer* buffer):
    """The bytes of a buffer as an array of uint8, which takes its memory over."""
    cdef Owned owned
    if buffer.count == 0:
        buffer_free(buffer)
        return np.empty(0, np.uint8)
    owned = Owned()
    owned.buffer = buffer[0]
    MKV_ADD64(&in_hand, buffer.capacity)
    buffer_init(buffer)
    return np.frombuffer(owned, dtype=np.uint8)


cdef object take_fids(Buffer* buffer):
    return take_bytes(buffer).view(np.uint64)


cdef bytes join_parts(parts):
    """The shards' bytes, each behind its length as u64."""
    return b"".join([piece for part in parts for piece in (len(part).to_bytes(8, "little"), part)])


cdef const fid_t* fids_of(const uint64_t[::1] fids) noexcept:
    return &fids[0] if fids.shape[0] else NULL


cdef int batch_of(Batch* batch, const uint64_t[::1] fids) except -1:
    cdef const fid_t* first = fids_of(fids)
    cdef size_t count = fids.shape[0]
    cdef status_t status
    with nogil:
        status = batch_create(batch, first, count)
    return raise_status(status)


cdef extern from "pythread.h":
    unsigned long PyThread_get_thread_ident()


cdef class Barrier:
    """Between calls: hold it, and no call that changes rows is under way."""

    def __cinit__(self):
        if lock_create(&self.lock) != STATUS_OK:
            raise MemoryError("no memory for a lock")

    def __dealloc__(self):
        lock_destroy(&self.lock)

    cdef void enter(self) noexcept nogil:
        lock_shared(&self.lock)

    cdef void leave(self) noexcept nogil:
        lock_leave(&self.lock)

    def settle(self):
        """Finish a change that this very thread is in the middle of: a signal came in between."""
        if self.change is not None and self.change_thread == PyThread_get_thread_ident():
            self.change.finish()

    def hold(self):
        self.settle()
        with nogil:
            lock_alone(&self.lock)

    def release(self):
        lock_leave(&self.lock)

    def __enter__(self):
        self.hold()
        return self

    def __exit__(self, *exception):
        self.release()


cdef class Core:
    """The shards of one table. `slices`: see TableCore."""

    def __cinit__(self, Barrier barrier not None, slices, seed):
        cdef size_t i
        cdef SlicePolicy* slice
        self.barrier = barrier
        memset(&self.policy, 0, sizeof(Policy))
        raise_status(pages_create(&self.pages))
        self.policy.slices = <SlicePolicy*>calloc(len(slices), sizeof(SlicePolicy))
        if self.policy.slices == NULL:
            raise MemoryError("no memory for a table")
        self.policy.slices_count = len(slices)
        for i, (dim, kind, hyper, initializer, a, b, key) in enumerate(slices):
            slice = &self.policy.slices[i]
            slice.span.dim = dim
            slice.span.embedding_offset = self.policy.dim
            slice.span.state_offset = self.policy.state_floats
            slice.optimizer.kind = kind
            slice.kernel = optimizer_kernel(kind)
            slice.initializer.kind = initializer
            slice.initializer.a = a
            slice.initializer.b = b
            slice.initializer.key = key
            self.policy.dim += dim
            self.policy.state_floats += optimizer_state_floats(kind, dim)
        self.policy.record_bytes = record_size_bytes(self.policy.dim, self.policy.state_floats)
        self.policy.threshold = 1
        for i in range(SHARDS):
            self.shards_made = i + 1
            raise_status(shard_create(
                &self.shards[i], &self.policy, &self.pages, hash_mix(<uint64_t>seed + i)))
            self.shards[i].hand = <uint64_t>i << (64 - SHARD_BITS)
        self.set_optimizers([hyper for _, _, hyper, _, _, _, _ in slices])

    def __init__(self, barrier, slices, seed):
        pass

    def __dealloc__(self):
        cdef size_t i
        for i in range(self.shards_made):
            shard_destroy(&self.shards[i])
        rowfiles_destroy(self.policy.row_files)
        pages_destroy(&self.pages)
        free(self.policy.slices)
        free(self.policy.ttl_s_by_slot)
        free(self.policy.threshold_by_slot)

    cdef int lock_all(self) except -1:
        cdef size_t i
        with nogil:
            for i in range(SHARDS):
                lock_alone(&self.shards[i].lock)
        return 0

    cdef int unlock_all(self) except -1:
        cdef size_t i
        for i in range(SHARDS):
            lock_leave(&self.shards[i].lock)
        return 0

    # --- settings ----------------------------------------------------------------------------

    def set_optimizers(self, hypers):
        cdef size_t i, j
        self.lock_all()
        try:
            for i, hyper in enumerate(hypers):
                for j, value in enumerate(hyper):
                    self.policy.slices[i].optimizer.values[j] = value
        finally:
            self.unlock_all()

    def set_initializers(self, initializers):
        cdef size_t i
        self.lock_all()
        try:
            for i, (kind, a, b, key) in enumerate(initializers):
                self.policy.slices[i].initializer.kind = kind
                self.policy.slices[i].initializer.a = a
                self.policy.slices[i].initializer.b = b
                self.policy.slices[i].initializer.key = key
        finally:
            self.unlock_all()

    def set_ttl(self, default_s, slots):
        cdef int64_t* by_slot = NULL
        cdef int64_t for_others = default_s
        cdef size_t i
        if slots:
            by_slot = <int64_t*>malloc(SLOTS * sizeof(int64_t))
            if by_slot == NULL:
                raise MemoryError("no memory for a TTL by slot")
            for i in range(SLOTS):
                by_slot[i] = for_others
            for slot, ttl_s in slots.items():
                by_slot[<size_t>slot] = ttl_s
        self.lock_all()
        self.policy.ttl_s = for_others
        free(self.policy.ttl_s_by_slot)
        self.policy.ttl_s_by_slot = by_slot
        self.unlock_all()

    def set_gate(self, gate):
        if gate is None:
            self.lock_all()
            self.policy.is_gated = False
            self.unlock_all()
            return
        default, slots, capacity, error, window_s = gate
        cdef uint32_t* by_slot = NULL
        cdef uint32_t for_others = default
        cdef uint32_t largest = max(default, *slots.values()) if slots else default
        cdef size_t i
        cdef status_t status = STATUS_OK
        cdef uint64_t part = -(-capacity // SHARDS)
        if slots:
            by_slot = <uint32_t*>malloc(SLOTS * sizeof(uint32_t))
            if by_slot == NULL:
                raise MemoryError("no memory for a threshold by slot")
            for i in range(SLOTS):
                by_slot[i] = for_others
            for slot, threshold in slots.items():
                by_slot[<size_t>slot] = threshold
        cdef double share = error
        cdef int64_t window = window_s
        self.lock_all()
        for i in range(SHARDS):
            if status == STATUS_OK:
                status = sketch_settle(&self.shards[i].sketch, part, share, window, largest)
        if status == STATUS_OK:
            self.policy.is_gated = True
            self.policy.threshold = for_others
            free(self.policy.threshold_by_slot)
            self.policy.threshold_by_slot = by_slot
        else:
            free(by_slot)
        self.unlock_all()
        raise_status(status)

    # --- figures -----------------------------------------------------------------------------

    @property
    def dim(self):
        return self.policy.dim

    @property
    def state_floats(self):
        return self.policy.state_floats

    @property
    def record_bytes(self):
        return self.policy.record_bytes

    @property
    def place_bytes(self):
        return PIECE_BYTES // self.shards[0].arena.places

    @property
    def promised(self):
        cdef uint64_t promised = 0
        cdef size_t i
        for i in range(SHARDS):
            lock_shared(&self.shards[i].lock)
            promised += self.shards[i].promised
            lock_leave(&self.shards[i].lock)
        return promised

    @property
    def rows(self):
        cdef uint64_t rows = 0
        cdef size_t i
        for i in range(SHARDS):
            rows += MKV_LOAD64(&self.shards[i].index.rows)
        return rows

    @property
    def cold_rows(self):
        cdef uint64_t rows = 0
        cdef size_t i
        for i in range(SHARDS):
            rows += MKV_LOAD64(&self.shards[i].cold_rows)
        return rows

    def touched(self):
        cdef uint64_t count = 0
        cdef size_t i
        with nogil:
            for i in range(SHARDS):
                lock_shared(&self.shards[i].lock)
                count += self.shards[i].touched.count + self.shards[i].seal_fids.count
                lock_leave(&self.shards[i].lock)
        return count // sizeof(fid_t)

    def digest(self):
        cdef RowDigest total
        cdef size_t i
        total.low = total.high = 0
        self.lock_all()
        with nogil:
            for i in range(SHARDS):
                locked_sum_all(&self.shards[i])
                digest_add(&total, self.shards[i].digest)
            for i in range(SHARDS):
                lock_leave(&self.shards[i].lock)
        return total.low, total.high

    def memory(self):
        cdef size_t rows = 0, index = 0, sketch = 0, touched = 0
        cdef size_t i
        cdef Shard* shard
        for i in range(SHARDS):
            shard = &self.shards[i]
            # Each call of a store that overflows asks: to be given the GIL again takes longer.
            if not lock_try_shared(&shard.lock):
                with nogil:
                    lock_shared(&shard.lock)
            rows += arena_size_bytes(&shard.arena)
            index += shard.index.size_bytes
            sketch += sketch_size_bytes(&shard.sketch)
            touched += (
                shard.touched.capacity + shard.seal_fids.capacity + shard.seal_saved.capacity
                + shard.snapshot_saved.capacity + shard.sightings.capacity)
            lock_leave(&shard.lock)
        if self.policy.row_files != NULL:
            index += self.policy.row_files.size_bytes
        rows += pages_spare_bytes(&self.pages) + backer_ready_bytes(&self.pages.backer)
        return {"rows": rows, "index": index, "sketch": sketch, "touched": touched}

    def counters(self):
        cdef Counters total
        cdef const Counters* part
        cdef size_t i
        memset(&total, 0, sizeof(total))
        with nogil:
            for i in range(SHARDS):
                lock_shared(&self.shards[i].lock)
                part = &self.shards[i].counters
                total.inserted += part.inserted
                total.expired += part.expired
                total.removed += part.removed
                total.evicted += part.evicted
                total.promoted += part.promoted
                # Those who share the lock count these.
                total.lookups += MKV_LOAD64(&part.lookups)
                total.hits += MKV_LOAD64(&part.hits)
                total.cold_hits += MKV_LOAD64(&part.cold_hits)
                lock_leave(&self.shards[i].lock)
        return {
            "inserted": total.inserted, "expired": total.expired, "removed": total.removed,
            "evicted": total.evicted, "promoted": total.promoted, "lookups": total.lookups,
            "hits": total.hits, "cold_hits": total.cold_hits}

    def gate_stats(self):
        cdef double fill = 0.0, error = 0.0
        cdef uint64_t admitted = 0, rejected = 0
        cdef size_t i
        self.lock_all()
        for i in range(SHARDS):
            admitted += self.shards[i].counters.admitted
            rejected += self.shards[i].counters.rejected
            if self.policy.is_gated:
                fill += sketch_fill(&self.shards[i].sketch) / SHARDS
                error += sketch_error_estimate(&self.shards[i].sketch) / SHARDS
        self.unlock_all()
        return {"admitted": admitted, "rejected": rejected, "fill": fill, "error_estimate": error}


cdef status_t sketch_settle(
    Sketch* sketch, uint64_t capacity, double error, int64_t window_s, uint32_t count_max
) noexcept nogil:
    """Give a shard a sketch of these settings; counts are kept where the new one counts alike."""
    cdef Sketch fresh
    cdef status_t status
    if sketch.cells == NULL:
        return sketch_create(sketch, capacity, error, window_s, count_max)
    status = sketch_create(&fresh, capacity, error, window_s, count_max)
    if status != STATUS_OK:
        return status
    if fresh.width == sketch.width and fresh.window_s == sketch.window_s:
        sketch_destroy(&fresh)
        return sketch_resize_counts(sketch, count_max)
    sketch_replace(sketch, &fresh)
    return STATUS_OK

"""rows <-> bytes: the one row encoding of log, snapshot, overflow and wire. All inline.

    fid u64 | timestamp i64, whole seconds | embedding f32 x dim | state f32 x state_floats

Little-endian. Records of one table are equally long, so a block of them is an array.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy

from monolith_kv._types cimport fid_t, unix_s_t

cdef enum:
    RECORD_FID = 0          # On disk: never change.
    RECORD_TIME = 8
    RECORD_EMBEDDING = 16


cdef inline void store_le64(uint8_t* out, uint64_t value) noexcept nogil:
    cdef int i
    for i in range(8):
        out[i] = <uint8_t>(value >> (8 * i))


cdef inline uint64_t load_le64(const uint8_t* data) noexcept nogil:
    cdef uint64_t value = 0
    cdef int i
    for i in range(8):
        value |= <uint64_t>data[i] << (8 * i)
    return value


cdef inline size_t record_size_bytes(size_t embedding_floats, size_t state_floats) noexcept nogil:
    return RECORD_EMBEDDING + sizeof(float) * (embedding_floats + state_floats)


cdef inline void record_pack(
    uint8_t* out, fid_t fid, unix_s_t time,
    const float* embedding, size_t embedding_floats, const float* state, size_t state_floats,
) noexcept nogil:
    # Floats are copied as they lie: the package refuses to load on a big-endian machine.
    store_le64(out + RECORD_FID, fid)
    store_le64(out + RECORD_TIME, <uint64_t>time)
    memcpy(out + RECORD_EMBEDDING, embedding, embedding_floats * sizeof(float))
    memcpy(
        out + RECORD_EMBEDDING + embedding_floats * sizeof(float), state,
        state_floats * sizeof(float))


cdef inline fid_t record_fid(const uint8_t* record) noexcept nogil:
    return load_le64(record + RECORD_FID)


cdef inline unix_s_t record_time(const uint8_t* record) noexcept nogil:
    return <int64_t>load_le64(record + RECORD_TIME)


cdef inline const uint8_t* record_embedding(const uint8_t* record) noexcept nogil:
    return record + RECORD_EMBEDDING


cdef inline const uint8_t* record_state(
    const uint8_t* record, size_t embedding_floats
) noexcept nogil:
    return record + RECORD_EMBEDDING + embedding_floats * sizeof(float)

"""Read records of cold rows. See _rowfile.pxd."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, qsort
from libc.string cimport memcpy, memset

from monolith_kv._checksum cimport crc32c_update
from monolith_kv._codec cimport record_fid
from monolith_kv._lock cimport lock_create, lock_destroy
from monolith_kv._row cimport row_cold_number
from monolith_kv._types cimport STATUS_OK, STATUS_OUT_OF_MEMORY, fid_t, row_t, status_t

cdef extern from "rowfile.h" nogil:
    int mkv_read_cached(int fd, uint8_t* record, size_t size, uint32_t* sum, int64_t offset)
    void mkv_read_ask(int fd, size_t size, int64_t offset)
    int64_t mkv_read_whole(int fd, uint8_t* data, size_t size, int64_t offset)


cdef status_t rowfiles_create(
    RowFiles** files, size_t record_bytes, uint32_t place_bits
) noexcept nogil:
    cdef RowFiles* made = <RowFiles*>calloc(1, sizeof(RowFiles))
    if made == NULL:
        return STATUS_OUT_OF_MEMORY
    made.record_bytes = record_bytes
    made.place_bits = place_bits
    made.files = <RowFile**>calloc(ROWFILES_MAX, sizeof(RowFile*))
    if made.files == NULL or lock_create(&made.lock) != STATUS_OK:
        free(made.files)
        free(made)
        return STATUS_OUT_OF_MEMORY
    files[0] = made
    return STATUS_OK


cdef void rowfiles_destroy(RowFiles* files) noexcept nogil:
    cdef uint32_t number
    if files == NULL:
        return
    for number in range(files.count):
        rowfiles_remove(files, number)
    lock_destroy(&files.lock)
    free(files.files)
    free(files)


cdef status_t rowfiles_add(
    RowFiles* files, uint32_t number, int fd, uint32_t seed, uint64_t base, uint32_t places
) noexcept nogil:
    cdef RowFile* file = <RowFile*>calloc(1, sizeof(RowFile))
    if file == NULL:
        return STATUS_OUT_OF_MEMORY
    # Zeros that nobody has touched take no memory.
    file.headers = <uint64_t*>calloc(
        places if places else <size_t>1 << files.place_bits, sizeof(uint64_t))
    if file.headers == NULL:
        free(file)
        return STATUS_OUT_OF_MEMORY
    file.fd = fd
    file.seed = seed
    file.base = base
    file.places = places
    files.files[number] = file
    files.size_bytes += places * sizeof(uint64_t) + sizeof(RowFile)
    if number >= files.count:
        files.count = number + 1
    return STATUS_OK


cdef void rowfiles_remove(RowFiles* files, uint32_t number) noexcept nogil:
    cdef RowFile* file = files.files[number]
    if file != NULL:
        files.files[number] = NULL
        files.size_bytes -= file.places * sizeof(uint64_t) + sizeof(RowFile)
        free(file.headers)
        free(file)


cdef void rowfiles_wrote(RowFiles* files, uint32_t number, uint32_t places) noexcept nogil:
    files.size_bytes += (places - files.files[number].places) * sizeof(uint64_t)
    files.files[number].places = places


cdef int by_place(const void* first, const void* second) noexcept nogil:
    cdef uint64_t a = (<const uint64_t*>first)[0]
    cdef uint64_t b = (<const uint64_t*>second)[0]
    return (a > b) - (a < b)


cdef status_t rowfiles_read(
    const RowFiles* files, const row_t* rows, const fid_t* fids, size_t count,
    const RowTarget* target, uint8_t* outcomes
) noexcept nogil:
    # In the order of the disk: first what is in the page cache; the rest is asked for as a
    # whole, so that the disk has many reads to choose from, and then waited for.
    cdef uint64_t* order = <uint64_t*>malloc((count + 1) * sizeof(uint64_t))
    cdef uint8_t* record = <uint8_t*>malloc(files.record_bytes + 1)
    cdef size_t found = 0
    cdef size_t missing = 0
    cdef size_t i, at
    if order == NULL or record == NULL:
        free(order)
        free(record)
        return STATUS_OUT_OF_MEMORY
    memset(outcomes, ROW_NOT_COLD, count)
    for i in range(count):
        if rows[i]:
            order[found] = <uint64_t>row_cold_number(rows[i]) << 32 | i
            found += 1
    qsort(order, found, sizeof(uint64_t), by_place)
    for i in range(found):
        at = <uint32_t>order[i]
        outcomes[at] = row_read(files, rows[at], fids[at], record, True)
        if outcomes[at] == ROW_GOOD:
            target_fill(target, at, record)
        elif outcomes[at] == ROW_NOT_COLD:
            order[missing] = order[i]
            missing += 1
    for i in range(missing):
        row_ask(files, rows[<uint32_t>order[i]])
    for i in range(missing):
        at = <uint32_t>order[i]
        outcomes[at] = row_read(files, rows[at], fids[at], record, False)
        if outcomes[at] == ROW_GOOD:
            target_fill(target, at, record)
    free(order)
    free(record)
    return STATUS_OK


cdef inline void target_fill(
    const RowTarget* target, size_t number, const uint8_t* record
) noexcept nogil:
    cdef size_t place = number if target.places == NULL else <size_t>target.places[number]
    memcpy(target.data + place * target.stride, record + target.begin, target.bytes)


cdef uint8_t row_read(
    const RowFiles* files, row_t row, fid_t fid, uint8_t* record, bint is_cached
) noexcept nogil:
    """Read a record; ROW_NOT_COLD: it is not in the page cache, as was asked for."""
    cdef const RowFile* file = rowfile_of(files, row)
    cdef size_t size = files.record_bytes
    cdef int64_t offset = row_offset(files, row)
    cdef uint32_t stored
    cdef int64_t got
    if is_cached and not mkv_read_cached(file.fd, record, size, &stored, offset):
        return ROW_NOT_COLD
    if not is_cached:
        got = mkv_read_whole(file.fd, record, size, offset)
        if got == <int64_t>size:
            got = mkv_read_whole(file.fd, <uint8_t*>&stored, sizeof(stored), offset + got)
            got += size if got >= 0 else 0
        if got != <int64_t>(size + sizeof(stored)):
            return ROW_UNREADABLE if got < 0 else ROW_DAMAGED
    # Good only if the bytes are those that were written, and the record is of that id.
    if crc32c_update(file.seed, record, size) != stored or record_fid(record) != fid:
        return ROW_DAMAGED
    return ROW_GOOD


cdef inline void row_ask(const RowFiles* files, row_t row) noexcept nogil:
    mkv_read_ask(
        rowfile_of(files, row).fd, files.record_bytes + ROWFILE_SUM_BYTES, row_offset(files, row))


cdef void rowfile_checksum(
    const uint8_t* records, size_t record_bytes, size_t count, uint32_t seed, uint8_t* out
) noexcept nogil:
    cdef size_t _i
    cdef uint32_t sum
    for _i in range(count):
        memcpy(out, records, record_bytes)
        sum = crc32c_update(seed, records, record_bytes)
        memcpy(out + record_bytes, &sum, sizeof(sum))
        records += record_bytes
        out += record_bytes + sizeof(sum)


cdef inline int64_t row_offset(const RowFiles* files, row_t row) noexcept nogil:
    cdef uint32_t place = row_cold_number(row) & ((<uint32_t>1 << files.place_bits) - 1)
    return <int64_t>(
        rowfile_of(files, row).base + <uint64_t>place * (files.record_bytes + ROWFILE_SUM_BYTES))

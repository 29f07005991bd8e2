"""Row files: where the records of rows that lie in overflow ("cold" rows) are read.

A row file holds records of one table in places of equal size, each behind the other with its
checksum; it is only ever appended to, so what was read once stays true. A part of a snapshot that
has the same form is read as a row file, too. The number of a cold row in the index tells file and
place. The header words of cold rows stay in memory, by place: times, flags and heat are known
without the disk, and change under the lock of the row's shard as those of rows in memory do.

Files are written, named and closed by their owner (storage/overflow.py); here they are read.
Whoever reads holds the lock shared from before it looks for the number until it is done: so a file
is not taken away in between.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from monolith_kv._lock cimport Lock
from monolith_kv._row cimport row_cold_number
from monolith_kv._types cimport fid_t, row_t, status_t

cdef enum:
    ROWFILE_SUM_BYTES = 4
    ROWFILES_MAX = 65536

cdef enum:
    # What came of reading a row.
    ROW_NOT_COLD = 0
    ROW_GOOD = 1
    ROW_DAMAGED = 2
    ROW_UNREADABLE = 3            # the disk failed

cdef struct RowFile:
    int fd                        # -1: closed, its rows cannot be read any more
    uint32_t seed                 # where its checksums begin
    uint64_t base                 # byte of the first place
    uint32_t places               # written; the memory of later headers was never touched
    uint64_t live                 # rows that lie here; atomic
    uint64_t* headers             # by place

cdef struct RowFiles:
    Lock lock                     # alone: a file is taken away
    size_t record_bytes
    uint32_t place_bits
    uint32_t count                # files have lower numbers
    size_t size_bytes             # of memory
    RowFile** files               # by number; NULL: there is none

cdef struct RowTarget:
    # Where a part of each record goes.
    uint8_t* data
    size_t stride
    const int64_t* places         # which stride of the data; NULL: one after the other
    size_t begin                  # byte of the record
    size_t bytes

cdef status_t rowfiles_create(
    RowFiles** files, size_t record_bytes, uint32_t place_bits) noexcept nogil
cdef void rowfiles_destroy(RowFiles* files) noexcept nogil
# `places` that are there already: no more come; 0: as many as there may be.
cdef status_t rowfiles_add(
    RowFiles* files, uint32_t number, int fd, uint32_t seed, uint64_t base, uint32_t places
) noexcept nogil
# So many places are written now.
cdef void rowfiles_wrote(RowFiles* files, uint32_t number, uint32_t places) noexcept nogil
# Records as they lie in a file, each with its checksum behind it.
cdef void rowfile_checksum(
    const uint8_t* records, size_t record_bytes, size_t count, uint32_t seed, uint8_t* out
) noexcept nogil
# The file may be closed afterwards; no row may lie there, unless the table ends. The caller holds
# the lock alone.
cdef void rowfiles_remove(RowFiles* files, uint32_t number) noexcept nogil
# Read these rows; a row 0 is none. `outcomes`: of each. The lock is held shared.
cdef status_t rowfiles_read(
    const RowFiles* files, const row_t* rows, const fid_t* fids, size_t count,
    const RowTarget* target, uint8_t* outcomes
) noexcept nogil


cdef inline RowFile* rowfile_of(const RowFiles* files, row_t row) noexcept nogil:
    return files.files[row_cold_number(row) >> files.place_bits]


cdef inline uint64_t* rowfile_header(const RowFiles* files, row_t row) noexcept nogil:
    return &rowfile_of(files, row).headers[
        row_cold_number(row) & ((<uint32_t>1 << files.place_bits) - 1)]

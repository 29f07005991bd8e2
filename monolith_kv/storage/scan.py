"""Read what is good of a damaged record file: each record on its own, whatever is around it."""

import os
from collections.abc import Iterator

from monolith_kv.errors import FormatVersionError
from monolith_kv.storage import files
from monolith_kv.storage.format import HEADER_BYTES, FileType, RecordKind, unpack_header
from monolith_kv.storage.framing import Assembler, Damage, Record, read_part
from monolith_kv.storage.log_file import LogReader, Windowed


def good_records(path: str, file_type: FileType, problems: list[str]) -> Iterator[Record]:
    """Yield the records that verify, END not among them; note the bytes that do not.

    Parameters
    ----------
    path : str
        The file; without a good header nothing of it can be verified.
    file_type : FileType
        What it has to be.
    problems : list of str
        Takes a sentence for each stretch that is damaged.

    Raises
    ------
    CorruptionError, FormatVersionError
        The header is damaged, or of another version.

    Notes
    -----
    Neither order nor completeness is known of what is left: whole rows may be used all the same.
    """
    fd = files.open_readable(path)
    try:
        size = os.fstat(fd).st_size
        header = unpack_header(os.pread(fd, HEADER_BYTES, 0), path, file_type)
        source, offset, assembler = Windowed(fd), HEADER_BYTES, Assembler(path)
        while offset < size:
            try:
                part = read_part(source, offset, size, header.seed, None)
                if part.header.kind == RecordKind.END:
                    return
                record = assembler.add(part)
            except (Damage, FormatVersionError) as damage:
                with LogReader(path, file_type) as reader:
                    later = reader.next_record(offset + 8)
                end = size if later is None else later
                problems.append(f"{path}: bytes {offset} to {end} are damaged: {damage}")
                offset, assembler = end, Assembler(path)
                continue
            offset = part.end
            if record is not None:
                yield record
        problems.append(f"{path}: its end is missing")
    finally:
        os.close(fd)

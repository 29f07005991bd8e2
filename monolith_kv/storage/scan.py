"""Read what is good of a damaged record file: each record on its own, whatever is around it."""

from collections.abc import Iterator

from monolith_kv.errors import FormatVersionError
from monolith_kv.storage.format import HEADER_BYTES, FileType, RecordKind, unpack_header
from monolith_kv.storage.framing import Assembler, Damage, Record, read_part
from monolith_kv.storage.log_reader import LogReader
from monolith_kv.storage.stream import File, Stream


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
    file = File(path)
    size = file.size
    header = unpack_header(bytes(file.view(0, HEADER_BYTES)), path, file_type)
    source, offset, assembler = Stream(file), HEADER_BYTES, Assembler(path)
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

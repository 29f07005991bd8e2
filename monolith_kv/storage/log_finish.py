"""Close a log for a writer that died: what was recovered from it is durable, then it ends.

Without this a log that was cut would be followed by another one, and nobody could tell later
whether it had been complete.
"""

import os

from monolith_kv.storage import files
from monolith_kv.storage.format import HEADER_BYTES, FileType, RecordKind, unpack_header
from monolith_kv.storage.framing import Damage, corruption, encode_json, frame_payload, read_part
from monolith_kv.storage.stream import File, Stream


def finish_log(path: str, file_type: FileType) -> None:
    """Write the END record of a log whose torn tail was cut; nothing if it has one.

    Parameters
    ----------
    path : str
        The log; nobody else has it open for writing.
    file_type : FileType
        What it has to be.

    Raises
    ------
    CorruptionError
        There is damage in it.
    StoreFullError
        There is no room for the record; the log is as it was.
    """
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        file = File(path)
        size = file.size
        header = unpack_header(bytes(file.view(0, HEADER_BYTES)), path, file_type)
        source, offset, previous, records = Stream(file), HEADER_BYTES, header.crc, 0
        while offset < size:
            try:
                part = read_part(source, offset, size, header.seed, previous)
            except Damage as damage:
                raise corruption(path, offset, damage) from None
            if part.header.kind == RecordKind.END:
                return
            offset, previous, records = part.end, part.header.crc, records + 1
        files.sync_file(fd)  # The END record says that all before it is durable.
        payload = encode_json({"records": records})
        frames = frame_payload(
            payload, header.seed, previous, RecordKind.END, 0, records, size, False
        )
        os.lseek(fd, size, os.SEEK_SET)
        try:
            with files.disk_errors(path):
                for frame in frames:
                    files.write_all(fd, frame.buffers)
                files.sync_file(fd)
        except BaseException:
            files.truncate_file(fd, size)
            raise
    finally:
        os.close(fd)

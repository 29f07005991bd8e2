"""Marks that calls were made which no file holds yet: what tells a crash that something is lost.

A mark is an empty file. It is left at the first call after a seal or a snapshot and removed when
the next one is durable, so what is there when a store is recovered stands for calls that are gone.
"""

import os
import re

from monolith_kv.storage import files
from monolith_kv.storage.format import CALL_FOLDER

MARK_PATTERN = re.compile(r"([0-9]{20})\.unsealed")


def leave(root: str, number: int) -> None:
    """Leave mark `number`, durably: a power cut loses those calls, too."""
    folder = os.path.join(root, CALL_FOLDER)
    files.make_folder(folder)
    path = os.path.join(folder, f"{number:020d}.unsealed")
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    files.fsync_folder(folder)


def numbers(root: str) -> list[int]:
    """Return the numbers of all marks, in order."""
    found = map(MARK_PATTERN.fullmatch, files.list_names(os.path.join(root, CALL_FOLDER)))
    return [int(match[1]) for match in found if match]


def remove(root: str, last: int) -> None:
    """Remove the marks up to `last`."""
    for number in numbers(root):
        if number <= last:
            files.remove_quietly(os.path.join(root, CALL_FOLDER, f"{number:020d}.unsealed"))

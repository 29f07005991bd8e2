"""Every exception and warning that monolith_kv raises on its own account.

One root, `Error`, and a flat tree below it. What a caller may want to act upon is an attribute,
never something to be parsed out of a message.
"""


class Error(Exception):
    """Base of all that this package raises on its own account.

    A message names the file (and the offset), what was found, what was expected and what to do.

    Examples
    --------
    >>> issubclass(GapError, Error)
    True
    """


class StoreLockedError(Error):
    """Another process, or another handle of this one, has the store open for writing."""


class ReadOnlyError(Error):
    """The call would change a store that was opened "r" or "replica"."""


class ClosedError(Error):
    """The store was closed, or the table was dropped."""


class ForkedError(Error):
    """The handle belongs to the parent process; open the store again in the child."""


class TableExistsError(Error):
    """A table of this name is there already."""


class SchemaError(Error):
    """Slices, dims or kinds of optimizer differ from those that the table has."""


class ClockError(Error):
    """The clock seems to have jumped: a compaction would take over half of a table."""


class CorruptionError(Error):
    """Stored bytes are not what was written.

    Parameters
    ----------
    message : str
        What was found, what was expected and what to do.
    path : str, optional
        The damaged file.
    offset : int, optional
        Bytes from the start of the file to the damage.

    Examples
    --------
    >>> error = CorruptionError("crc mismatch in a.delta at byte 64", path="a.delta", offset=64)
    >>> error.path, error.offset
    ('a.delta', 64)
    """

    def __init__(self, message: str, path: str | None = None, offset: int | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.offset = offset


class FormatVersionError(Error):
    """A file was written by a version, or with a feature, that this one cannot read."""


class GapError(Error):
    """A delta is missing: the one given or asked for does not follow the one before it.

    Parameters
    ----------
    message : str
        What was found, what was expected and what to do.
    expected : int, optional
        The sequence that had to come next.
    found : int, optional
        The sequence that came, or the oldest one that is still there.

    Examples
    --------
    >>> error = GapError("expected delta 4, got 6; restore a snapshot", expected=4, found=6)
    >>> error.expected, error.found
    (4, 6)
    """

    def __init__(self, message: str, expected: int | None = None, found: int | None = None) -> None:
        super().__init__(message)
        self.expected = expected
        self.found = found


class FencedError(Error):
    """A delta belongs to an older epoch, to another history or to another store."""


class StoreFullError(Error):
    """The disk or the memory budget is exhausted; what was acknowledged before is intact."""


class DataLossWarning(UserWarning):
    """Something that was written is known to be lost; `Store.stats()["lost"]` says what."""

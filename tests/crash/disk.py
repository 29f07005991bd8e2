"""What a disk may hold when power fails: a model of files between the calls and stable storage.

`Disk` takes the steps of a trace and, after any of them, yields images: folders as the next boot
may find them. What a call changed and nothing has flushed is pending, and each part of it may or
may not have reached the disk, in any order:

- of data, each sector of 512 bytes by itself, in any version that was written since the last flush;
  what was never written reads as zeros;
- the size of a file apart from its data, also a sector less or more of what was appended. A cut
  takes what lies behind it along;
- each change of names by itself: create, link, unlink, rename (which is atomic), a new folder.

fsync and fdatasync of a file make its data and size durable, not its name; fsync of a folder makes
the names in it durable, not what is in the files. After Pillai et al., "All file systems are not
created equal", OSDI 2014.
"""

import itertools
import math
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from crash.trace import Step

SECTOR_BYTES = 512
Image = tuple[tuple[str, bytes | None], ...]
"""Paths in order, each with its content; None: a folder."""


class File:
    """The versions of size and sectors since the last flush, oldest first; the first is durable."""

    def __init__(self, content: bytes = b"") -> None:
        self.sizes = [0]
        self.sectors: dict[int, list[bytes]] = {}
        # Of each cut: which version of the size it made, and which of each sector that it cleared.
        self.cuts: list[tuple[int, dict[int, int]]] = []
        self._built: dict[tuple[int, ...], bytes] = {}
        if content:
            self.write(0, content)
            self.flush()

    def write(self, offset: int, data: bytes) -> None:
        self._built.clear()
        end = offset + len(data)
        for sector in range(offset // SECTOR_BYTES, -(-end // SECTOR_BYTES)):
            start = sector * SECTOR_BYTES
            versions = self.sectors.setdefault(sector, [bytes(SECTOR_BYTES)])
            inner, outer = max(offset, start), min(end, start + SECTOR_BYTES)
            was = versions[-1]
            piece = data[inner - offset : outer - offset]
            versions.append(was[: inner - start] + piece + was[outer - start :])
        if end > self.sizes[-1]:
            # It may have grown by a part of the write.
            begin = self.sizes[-1] // SECTOR_BYTES + 1
            self.sizes += [*range(begin * SECTOR_BYTES, end, SECTOR_BYTES), end]

    def cut(self, size: int) -> None:
        """Make it this size; what lies behind reads as zeros if it grows again."""
        if size == self.sizes[-1]:
            return
        self._built.clear()
        self.sizes.append(size)
        cleared = {}
        for sector, versions in self.sectors.items():
            keep = min(max(size - sector * SECTOR_BYTES, 0), SECTOR_BYTES)
            if any(versions[-1][keep:]):
                versions.append(versions[-1][:keep].ljust(SECTOR_BYTES, b"\0"))
                cleared[sector] = len(versions) - 1
        self.cuts.append((len(self.sizes) - 1, cleared))

    def flush(self) -> None:
        self._built.clear()
        self.sizes = self.sizes[-1:]
        self.sectors = {sector: versions[-1:] for sector, versions in self.sectors.items()}
        self.cuts.clear()

    def choices(self) -> list[int]:
        """How many versions there are of the size, then of each sector that is not flushed."""
        loose = [len(v) for _, v in sorted(self.sectors.items()) if len(v) > 1]
        return [len(self.sizes), *loose] if loose or len(self.sizes) > 1 else []

    def content(self, chosen: Sequence[int] | None = None) -> bytes:
        """The bytes, with these versions; by default the last ones."""
        key = tuple(
            self.choices() and [n - 1 for n in self.choices()] if chosen is None else chosen
        )
        if key not in self._built:
            self._built[key] = self._build(key)
        return self._built[key]

    def _build(self, chosen: tuple[int, ...]) -> bytes:
        size_at = chosen[0] if chosen else 0
        loose = sorted(sector for sector, versions in self.sectors.items() if len(versions) > 1)
        at = dict(zip(loose, chosen[1:], strict=True))
        for version, cleared in self.cuts:
            for sector, cut_at in cleared.items():
                is_cut = size_at >= version
                at[sector] = max(at[sector], cut_at) if is_cut else min(at[sector], cut_at - 1)
        size = self.sizes[size_at]
        count = -(-size // SECTOR_BYTES)
        nothing = [bytes(SECTOR_BYTES)]
        pieces = [self.sectors.get(s, nothing)[at.get(s, 0)] for s in range(count)]
        return b"".join(pieces)[:size]


class Folder:
    """Names: those that are durable, and those that a running process sees."""

    def __init__(self) -> None:
        self.durable: dict[str, Node] = {}
        self.seen: dict[str, Node] = {}


Node = File | Folder


class Change(NamedTuple):
    """One change of names that is not flushed: what becomes of each, None for gone."""

    effects: tuple[tuple[Folder, str, Node | None], ...]


class Disk:
    """A folder on a disk; `take` the steps made in it, ask for `images` in between.

    Parameters
    ----------
    is_moot : callable
        Of a path: its content, and whether it is there, mean nothing to whoever opens the folder
        next, so that there is one state of it only, the last.
    is_litter : callable
        Of a name: a file that has no other name is removed unread, so its content means nothing.
    image : Image
        What is durable in the beginning.
    """

    def __init__(
        self,
        is_moot: Callable[[str], bool],
        is_litter: Callable[[str], bool],
        image: Image = (),
    ) -> None:
        self._is_moot, self._is_litter = is_moot, is_litter
        self.root = Folder()
        self.pending: list[Change] = []
        self._handles: dict[int, Node] = {}
        self._moot: set[Node] = set()
        self._shared: dict[bytes, bytes] = {}  # Equal contents are one object: cheap to compare.
        for path, content in image:
            folder, name = self._folder_of(path)
            folder.seen[name] = Folder() if content is None else File(content)
            folder.durable = dict(folder.seen)

    # --- steps ---------------------------------------------------------------------------------

    def take(self, step: Step) -> bool:
        """Make a step; whether the set of states that a power cut may leave has changed."""
        make = getattr(self, f"_{step.kind}")
        return bool(make(step))

    def _open(self, step: Step) -> bool:
        if not step.path:
            self._handles[step.handle] = self.root
            return False
        folder, name = self._folder_of(step.path)
        is_made = step.is_new and name not in folder.seen
        if is_made:
            self._change(step.path, (folder, name, File()))
        self._handles[step.handle] = folder.seen[name]
        return is_made

    def _write(self, step: Step) -> bool:
        node = self._file(step)
        if node in self._moot:
            return False
        node.write(step.offset, step.data)
        if step.is_synced:
            node.flush()
        return True

    def _cut(self, step: Step) -> bool:
        node = self._file(step)
        if node in self._moot:
            return False
        node.cut(step.offset)
        return True

    def _sync(self, step: Step) -> bool:
        node = self._handles[step.handle]
        if isinstance(node, File):
            node.flush()
            return True
        self._settle(node)
        return True

    def _settle(self, folder: Folder) -> None:
        """Make the changes of names in a folder durable."""
        for change in self.pending:
            if any(where is folder for where, _, _ in change.effects):
                for where, name, node in change.effects:
                    _put(where.durable, name, node)
        self.pending = [
            c for c in self.pending if not any(where is folder for where, _, _ in c.effects)
        ]

    def _link(self, step: Step) -> bool:
        node = self._node(step.path)
        self._change(step.target, (*self._folder_of(step.target), node))
        return True

    def _bring(self, step: Step) -> bool:
        node = File()
        node.write(0, step.data)  # Nobody has flushed it here.
        self._handles[step.handle] = node
        self._change(step.path, (*self._folder_of(step.path), node))
        return True

    def _rename(self, step: Step) -> bool:
        node = self._node(step.path)
        source, target = self._folder_of(step.path), self._folder_of(step.target)
        self._change(step.target, (*source, None), (*target, node))
        return True

    def _exchange(self, step: Step) -> bool:
        first, second = self._node(step.path), self._node(step.target)
        one, other = self._folder_of(step.path), self._folder_of(step.target)
        self._change(step.target, (*one, second), (*other, first))
        return True

    def _unlink(self, step: Step) -> bool:
        self._change(step.path, (*self._folder_of(step.path), None))
        return True

    def _folder(self, step: Step) -> bool:
        self._change(step.path, (*self._folder_of(step.path), Folder()))
        return True

    def _change(self, path: str, *effects: tuple[Folder, str, Node | None]) -> None:
        is_moot = self._is_moot(path)
        for folder, name, node in effects:
            _put(folder.seen, name, node)
            if is_moot:
                _put(folder.durable, name, node)
                if node is not None:
                    self._moot.add(node)
        if not is_moot:
            self.pending.append(Change(effects))

    def _node(self, path: str) -> Node:
        folder, name = self._folder_of(path)
        return folder.seen[name]

    def _file(self, step: Step) -> File:
        node = self._handles[step.handle]
        assert isinstance(node, File)
        return node

    def _folder_of(self, path: str) -> tuple[Folder, str]:
        *parents, name = path.split("/")
        folder = self.root
        for parent in parents:
            inner = folder.seen[parent]
            assert isinstance(inner, Folder)
            folder = inner
        return folder, name

    # --- images --------------------------------------------------------------------------------

    def image(self) -> Image:
        """What a running process sees: what is there after a kill."""
        return self._image(lambda folder: folder.seen, {})

    def images(self, limit: int, dice: random.Random) -> Iterator[Image]:
        """What a power cut may leave: all of it where that is at most `limit`, else a sample.

        Notes
        -----
        A sample begins with nothing and with everything that is pending, each part of it alone,
        and everything but each part; then parts at random.
        """
        changes, files = list(self.pending), self._loose()
        sizes = [2] * len(changes)
        for file in files:
            sizes += file.choices()
        for chosen in _selections(sizes, limit, dice):
            yield self._chosen(changes, files, chosen)

    def _loose(self) -> list[File]:
        """Files with something pending and a name, now or then, under which somebody looks."""
        found: dict[File, None] = {}
        folders, known = [self.root], {self.root}
        later: dict[Folder, list[tuple[str, Node | None]]] = {}
        for change in self.pending:
            for folder, name, node in change.effects:
                later.setdefault(folder, []).append((name, node))
        while folders:
            folder = folders.pop()
            for name, node in [*folder.durable.items(), *later.get(folder, ())]:
                if isinstance(node, Folder) and node not in known:
                    known.add(node)
                    folders.append(node)
                elif isinstance(node, File) and node.choices() and not self._is_litter(name):
                    found[node] = None
        return list(found)

    def _chosen(self, changes: list[Change], files: list[File], chosen: Sequence[int]) -> Image:
        names: dict[Folder, dict[str, Node]] = {}
        for change, is_made in zip(changes, chosen, strict=False):
            for folder, name, node in change.effects if is_made else ():
                if folder not in names:
                    names[folder] = dict(folder.durable)
                _put(names[folder], name, node)
        contents, at = {}, len(changes)
        for file in files:
            count = len(file.choices())
            contents[file] = file.content(chosen[at : at + count])
            at += count
        return self._image(lambda folder: names.get(folder, folder.durable), contents)

    def _image(
        self, names_of: Callable[[Folder], dict[str, Node]], contents: dict[File, bytes]
    ) -> Image:
        found: list[tuple[str, bytes | None]] = []

        def walk(folder: Folder, prefix: str) -> None:
            for name, node in sorted(names_of(folder).items()):
                if isinstance(node, Folder):
                    found.append((prefix + name, None))
                    walk(node, f"{prefix}{name}/")
                else:
                    content = contents[node] if node in contents else node.content()
                    found.append((prefix + name, self._shared.setdefault(content, content)))

        walk(self.root, "")
        return tuple(found)


def _put(names: dict[str, Node], name: str, node: Node | None) -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node


def _selections(
    sizes: Sequence[int], limit: int, dice: random.Random
) -> Iterator[tuple[int, ...] | list[int]]:
    """Vectors with 0 <= chosen[i] < sizes[i]: all, or at most `limit` of them."""
    if math.prod(sizes) <= limit:
        yield from itertools.product(*map(range, sizes))
        return
    last = [size - 1 for size in sizes]
    few = [last, [0] * len(sizes)]
    for index in range(len(sizes)):
        few.append([value if i == index else 0 for i, value in enumerate(last)])
        few.append([0 if i == index else value for i, value in enumerate(last)])
    if len(few) > limit:
        few = [*few[:2], *dice.sample(few[2:], max(limit - 2, 0))]
    yield from few
    for _ in range(limit - len(few)):
        share = dice.choice((0.1, 0.3, 0.5, 0.7, 0.9))
        yield [value if dice.random() < share else dice.randrange(value + 1) for value in last]


# --- on a real disk ----------------------------------------------------------------------------


def materialise(image: Image, folder: Path) -> None:
    """Write an image into an empty folder."""
    for path, content in image:
        full = f"{folder}/{path}"
        if content is None:
            os.mkdir(full, 0o700)
        else:
            fd = os.open(full, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            if content:
                os.write(fd, content)
            os.close(fd)


def read_image(folder: Path) -> Image:
    """The image of a real folder."""
    found: list[tuple[str, bytes | None]] = []
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).parts):
        inner = path.relative_to(folder).as_posix()
        found.append((inner, None if path.is_dir() else path.read_bytes()))
    return tuple(found)

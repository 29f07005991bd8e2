"""Make inputs for parsers out of good ones: bytes, JSON tokens, and records with a good chain.

A mutator is a plain function of a source of randomness and the inputs to begin with; the same seed
gives the same inputs.
"""

import functools
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import zstandard

from monolith_kv.storage.format import (
    HEADER,
    HEADER_BYTES,
    RECORD,
    RECORD_BYTES_MAX,
    RECORD_HEADER_BYTES,
    RecordFlag,
    RecordKind,
    padded,
)

Mutator = Callable[[random.Random, Sequence[bytes]], bytes]
INPUT_BYTES_MAX = 32_768
INTEGERS = (0, 1, 2, 7, 8, 63, 64, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31)
INTEGERS += (2**32 - 1, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
INTEGERS += (RECORD_BYTES_MAX, RECORD_BYTES_MAX + 1)
TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*|true|false|null|[\[\]{}:,]')
PUNCTUATION = frozenset((b"[", b"]", b"{", b"}", b":", b","))
TOKENS = [b"0", b"1", b"-1", b"1e999", b"-1e999", b"1e-999", b"0.5", b"null", b"true", b"false"]
TOKENS += [
    b'""',
    b'"a"',
    b'"\\ud800"',
    b'"\\u0000"',
    b'"0"',
    b'"-1"',
    b"[]",
    b"{}",
    b"[[]]",
    b"NaN",
]
TOKENS += [b"[" * 2_000, b"9" * 400, b"9" * 5_000, b'"' + b"a" * 300 + b'"', b'{"a":1,"a":2}', b"]"]
TOKENS += [str(number).encode() for number in INTEGERS]


def mutate_bytes(dice: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Change some bytes of one input: flip, set, insert, remove, repeat, or join it to another."""
    data = bytearray(dice.choice(seeds))
    for _ in range(1 + int(dice.random() * 3)):
        _change_bytes(dice, data, seeds)
    return bytes(data[:INPUT_BYTES_MAX])


def _change_bytes(dice: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    size = len(data)
    at = int(dice.random() * (size + 1))
    choice = int(dice.random() * 8)
    if choice == 0 and at < size:
        data[at] ^= 1 << int(dice.random() * 8)
    elif choice == 1 and at < size:
        data[at] = int(dice.random() * 256)
    elif choice in (2, 3):
        width = dice.choice((1, 2, 4, 8))
        number = dice.choice(INTEGERS) % (1 << 8 * width)
        data[at : at + width] = number.to_bytes(width, "little")
    elif choice == 4:
        del data[at : at + dice.choice((1, 2, 4, 8, 16, 64))]
    elif choice == 5:
        data[at:at] = dice.randbytes(dice.choice((1, 2, 4, 8, 16, 64)))
    elif choice == 6:
        data[at:at] = data[at : at + dice.choice((1, 8, 64, 256))]
    else:
        other = dice.choice(seeds)
        start = int(dice.random() * (len(other) + 1))
        data[at:] = other[start:]


def mutate_json(dice: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Replace, drop, double or swap tokens of a JSON text; now and then bytes."""
    if dice.random() < 0.1:
        return mutate_bytes(dice, seeds)
    return _change_json(dice, dice.choice(seeds))


@functools.lru_cache(4_096)
def _tokens(text: bytes) -> tuple[bytes, ...]:
    return tuple(TOKEN.findall(text)) or (b"{}",)


def _change_json(dice: random.Random, text: bytes) -> bytes:
    tokens = list(_tokens(text))
    for _ in range(1 + int(dice.random() * 3)):
        at, choice = int(dice.random() * len(tokens)), dice.random()
        if choice < 0.6:
            # Not what holds it together: mostly what comes out is JSON.
            while at and tokens[at] in PUNCTUATION:
                at -= 1
            tokens[at] = dice.choice(TOKENS)
        elif choice < 0.7:
            del tokens[at : at + dice.choice((1, 2, 4))]
            tokens = tokens or [b"{}"]
        elif choice < 0.8:
            tokens[at:at] = tokens[at : at + dice.choice((1, 2, 4))]
        else:
            other = int(dice.random() * len(tokens))
            tokens[at], tokens[other] = tokens[other], tokens[at]
    return b"".join(tokens)


def mutate_dense(dice: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Change the JSON header of a safetensors file, its length or its data."""
    if dice.random() < 0.2:
        return mutate_bytes(dice, seeds)
    seed = dice.choice(seeds)
    size = int.from_bytes(seed[:8], "little")
    text = _change_json(dice, seed[8 : 8 + size])
    data = seed[8 + size :] if dice.random() < 0.8 else dice.randbytes(int(dice.random() * 64))
    stated = dice.choice(INTEGERS) if dice.random() < 0.1 else len(text)
    return stated.to_bytes(8, "little") + text + data


# --- record files ------------------------------------------------------------------------------

Fields = list[Any]  # kind, flags, table, count, durable, payload
KIND, FLAGS, TABLE, COUNT, DURABLE, PAYLOAD = range(6)
KINDS = [int(kind) for kind in RecordKind]
_SPLIT: dict[bytes, tuple[bytes, list[Fields]]] = {}


def split(data: bytes) -> tuple[bytes, list[Fields]]:
    """Return the header of a record file, and its records as far as their lengths lead."""
    if data in _SPLIT:
        return _SPLIT[data]
    records: list[Fields] = []
    at = HEADER_BYTES
    while at + RECORD_HEADER_BYTES <= len(data):
        _, _, length, *fields = RECORD.unpack(data[at : at + RECORD_HEADER_BYTES])
        start = at + RECORD_HEADER_BYTES
        records.append([*fields, data[start : start + length]])
        at = start + padded(length)
    if len(_SPLIT) > 4_096:
        _SPLIT.clear()
    _SPLIT[data] = data[:HEADER_BYTES], records
    return _SPLIT[data]


def join(header: bytes, records: Sequence[Fields]) -> bytes:
    """Return a record file whose chain is good; its checksums are numbers in a row."""
    previous = int.from_bytes(header[-4:], "little")
    parts = [header]
    for crc, (kind, flags, table, count, durable, payload) in enumerate(records, 1):
        fields = RECORD.pack(crc, previous, len(payload), kind, flags, table, count, durable)
        parts += (fields, payload, bytes(-len(payload) % 8))
        previous = crc
    return b"".join(parts)


def mutate_records(dice: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Change header, fields, payloads or order of records, with a good chain most of the time."""
    header, kept = split(dice.choice(seeds))
    records = [list(fields) for fields in kept]
    for _ in range(1 + int(dice.random() * 3)):
        if records:
            _change_records(dice, records, seeds)
    if records and dice.random() < 0.9:
        records[-1][COUNT] = len(records) - 1  # As END has it.
    if dice.random() < 0.05:
        header = _changed_header(dice, header)
    data = join(header, records)
    if dice.random() < 0.1:
        changed = bytearray(data)
        _change_bytes(dice, changed, seeds)
        data = bytes(changed)
    return data[:INPUT_BYTES_MAX]


def _change_records(dice: random.Random, records: list[Fields], seeds: Sequence[bytes]) -> None:
    at, choice = int(dice.random() * len(records)), dice.random()
    fields = records[at]
    if choice < 0.5:
        fields[PAYLOAD] = _changed_payload(dice, fields[PAYLOAD], seeds)
    elif choice < 0.6:
        fields[COUNT] = dice.choice(INTEGERS) if dice.random() < 0.5 else fields[COUNT] + 1
        fields[COUNT] %= 2**64
    elif choice < 0.65:
        fields[TABLE] = dice.choice(INTEGERS) % 2**32
    elif choice < 0.72:
        fields[KIND] = dice.choice(KINDS) if dice.random() < 0.9 else dice.randrange(2**16)
    elif choice < 0.75:
        fields[DURABLE] = dice.choice(INTEGERS)
    elif choice < 0.8:
        _fold(dice, records, at)
    elif choice < 0.85:
        del records[at]
    elif choice < 0.9:
        records.insert(at, list(fields))
    elif choice < 0.95:
        other = int(dice.random() * len(records))
        records[at], records[other] = records[other], records[at]
    else:
        _, others = split(dice.choice(seeds))
        records.insert(at, list(dice.choice(others or records)))


def _fold(dice: random.Random, records: list[Fields], at: int) -> None:
    """Compress a payload, or let it go on in the next record, or only say so."""
    fields, choice = records[at], dice.random()
    if choice < 0.3:
        fields[FLAGS] ^= RecordFlag.COMPRESSED
    elif choice < 0.4:
        fields[FLAGS] ^= 1 << dice.randrange(16)
    elif choice < 0.7:
        payload = fields[PAYLOAD] if dice.random() < 0.8 else bytes(1 << dice.randrange(24))
        fields[PAYLOAD] = zstandard.ZstdCompressor(level=1).compress(payload)
        fields[FLAGS] |= RecordFlag.COMPRESSED
    else:
        middle = int(dice.random() * (len(fields[PAYLOAD]) + 1))
        rest = [*fields[:PAYLOAD], fields[PAYLOAD][middle:]]
        fields[PAYLOAD] = fields[PAYLOAD][:middle]
        fields[FLAGS] |= RecordFlag.MORE
        records.insert(at + 1, rest)


def _changed_payload(dice: random.Random, payload: bytes, seeds: Sequence[bytes]) -> bytes:
    if payload[:1] == b"{" and dice.random() < 0.9:
        return _change_json(dice, payload)
    changed = bytearray(payload)
    _change_bytes(dice, changed, [payload])
    return bytes(changed)


def _changed_header(dice: random.Random, header: bytes) -> bytes:
    fields = list(HEADER.unpack(header.ljust(HEADER_BYTES, b"\0")[:HEADER_BYTES]))
    at = dice.randrange(1, len(fields))
    if isinstance(fields[at], bytes):
        fields[at] = dice.randbytes(len(fields[at]))
    else:
        width = {1: 2, 2: 2, 3: 4, 4: 4, 9: 4}.get(at, 8)
        fields[at] = dice.choice(INTEGERS) % (1 << 8 * width)
    return HEADER.pack(*fields)


MUTATORS: dict[str, Mutator] = {
    "bytes": mutate_bytes,
    "json": mutate_json,
    "dense": mutate_dense,
    "records": mutate_records,
}

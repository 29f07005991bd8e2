"""Carry what a store publishes to replicas: publish to a target, follow a source.

Examples
--------
>>> from monolith_kv.replication import Follower, Publisher
"""

from monolith_kv.replication.loop import Stopped, repeat
from monolith_kv.replication.position import Digests, Position, positions, read_digests
from monolith_kv.replication.publisher import Published, Publisher
from monolith_kv.replication.replica import Followed, Follower
from monolith_kv.storage.inspect import describe

__all__ = [
    "Digests",
    "Followed",
    "Follower",
    "Position",
    "Published",
    "Publisher",
    "Stopped",
    "describe",
    "positions",
    "read_digests",
    "repeat",
]

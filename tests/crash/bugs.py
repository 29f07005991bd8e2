"""Bugs put in on purpose, as edits of the sources: what young storage engines get wrong.

An edit replaces a text that is in its file exactly once, so that a change of the sources which
touches a bug shows at once (test_seeded.py). Each bug names the tests that have to catch it, the
likeliest first. None of this is in the package: `crash.seeded` edits a copy of it.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple


class Edit(NamedTuple):
    """In `file`, `new` instead of `old`."""

    file: str
    old: str
    new: str


class Bug(NamedTuple):
    """One mistake; `caught_by` are pytest's names of tests."""

    name: str
    what: str
    edits: Sequence[Edit]
    caught_by: Sequence[str]


def bug(name: str, what: str, file: str, old: str, new: str, *caught_by: str) -> Bug:
    """Return a bug of one edit."""
    return Bug(name, what, [Edit(file, old, new)], caught_by)


STORAGE, REPLICATION = "monolith_kv/storage", "monolith_kv/replication"
UNIT, CRASH = "tests/unit", "tests/crash"
FOLLOWER = "tests/replication/test_follower_refuses.py"
UNFLUSHED = f"{CRASH}/test_unflushed.py"
POWER_CUT = f"{UNFLUSHED}::test_a_power_cut_at_any_flush_leaves_what_the_mode_promises"
DELTAS = f"{UNIT}/test_store_deltas.py"
PROMISES = f"{UNIT}/test_promises.py"
DAMAGE = "tests/format/test_damage.py"
FLUSH = f"{UNIT}/test_manifest_flush.py"
ROT = f"{UNIT}/test_overflow_rot.py"
LOG_FILE = f"{UNIT}/storage/test_log_file.py"

WRITING = [
    bug(
        "no-folder-sync",
        "a published name is not flushed",
        f"{STORAGE}/files.py",
        "            _rename_new(temporary, path)\n        fsync_folder(os.path.dirname(path))\n",
        "            _rename_new(temporary, path)\n",
        POWER_CUT,
    ),
    bug(
        "no-sync-before-rename",
        "deltas, snapshots and manifests get their names before their bytes are flushed",
        f"{STORAGE}/record_file.py",
        "        with files.disk_errors(self.path):\n"
        "            files.sync_file(self._fd)\n"
        "        files.publish",
        "        files.publish",
        POWER_CUT,
    ),
    bug(
        "folder-made-unflushed",
        "a new folder's name is not flushed",
        f"{STORAGE}/files.py",
        "        os.mkdir(path, 0o700)\n    fsync_folder(parent)\n",
        "        os.mkdir(path, 0o700)\n",
        POWER_CUT,
    ),
    bug(
        "ack-first",
        "a call is acknowledged from a buffer, the log gets it with the next one",
        f"{STORAGE}/log_file.py",
        "                    self._write(frame, end)\n",
        "                    held = self.__dict__.setdefault('held', [])\n"
        "                    files.write_all(self._fd, held)\n"
        "                    held[:] = map(bytes, map(files.byte_view, frame.buffers))\n",
        f"{UNIT}/test_store_modes.py::test_every_kind_of_call_survives_a_kill",
    ),
    bug(
        "no-sync-in-sync",
        "a flush of the call log flushes nothing",
        f"{STORAGE}/log_file.py",
        "            self._turn.release()\n            files.sync_file(self._fd)\n",
        "            self._turn.release()\n",
        f"{POWER_CUT}[sync]",
    ),
    bug(
        "group-wakes-early",
        "who waits for the flush of another thread is let go before it ends",
        f"{STORAGE}/log_file.py",
        "        target = self._end\n        is_released",
        "        target = self._durable = self._end\n        is_released",
        f"{LOG_FILE}::test_threads_that_sync_at_once_share_one_flush",
    ),
    bug(
        "memory-before-log",
        "a push changes memory before the log has it",
        "monolith_kv/calls.py",
        "            offset = write(entry.id, now, ids, values, change.settle)\n",
        "            change.start(now)\n            offset = write(entry.id, now, ids, values)\n",
        f"{PROMISES}::test_a_call_that_the_log_refuses_changes_nothing",
    ),
    bug(
        "short-write-ignored",
        "what a short write left out is not written",
        f"{STORAGE}/files.py",
        "        if written:\n            todo[0] = todo[0][written:]\n",
        "        if written:\n            todo.pop(0)\n",
        f"{UNIT}/storage/test_files.py::test_short_writes_are_continued",
    ),
    bug(
        "half-record-left",
        "a record that failed half-way is not cut off again",
        f"{STORAGE}/log_file.py",
        "        except BaseException:\n            self._cut_back()\n            raise\n",
        "        except BaseException:\n            raise\n",
        f"{LOG_FILE}::test_a_failed_write_is_cut_back_and_the_next_one_succeeds",
    ),
    bug(
        "sync-retried",
        "a flush that failed is tried again on the same file",
        f"{STORAGE}/log_file.py",
        "            self._failure = error  # Before another flush: the system tells once.\n",
        "            files.sync_file(self._fd)\n",
        f"{LOG_FILE}::test_a_failed_flush_gives_the_log_up_for_good_and_is_never_retried",
    ),
    bug(
        "rescue-without-snapshot",
        "after a failed flush the store goes on without a snapshot of memory",
        "monolith_kv/checkpoint.py",
        "            write_snapshot(state, None, None, first_call_log=first)\n",
        "            commit(state, first_call_log=first)\n",
        f"{UNIT}/test_recovery.py::test_after_a_failed_flush_the_store_goes_on_in_a_new_epoch",
    ),
    bug(
        "logs-dropped-first",
        "a seal deletes the call logs before the manifest that names its delta is durable",
        "monolith_kv/sealing.py",
        "    commit(\n        state,\n        sequence=sequence,\n",
        "    found.first_call_log, was = plan.calls_from, found.first_call_log\n"
        "    drop_call_logs(state)\n"
        "    found.first_call_log = was\n"
        "    commit(\n"
        "        state,\n"
        "        sequence=sequence,\n",
        f"{POWER_CUT}[sync]",
    ),
    Bug(
        "retired-first",
        "old snapshots and deltas are deleted before the manifest stops naming them",
        [
            Edit(
                "monolith_kv/catalog.py",
                "        commit(state, snapshots=kept, deltas=deltas)\n        names =",
                "        names =",
            ),
            Edit(
                "monolith_kv/catalog.py",
                "\n\ndef drop_call_logs(",
                "        commit(state, snapshots=kept, deltas=deltas)\n\n\ndef drop_call_logs(",
            ),
        ],
        [POWER_CUT],
    ),
    Bug(
        "named-before-written",
        "the manifest names dense parameters whose file comes after it",
        [
            Edit(
                "monolith_kv/dense_parameters.py",
                "            entry = dense.store(state.path, state.dense.version + 1, data)\n",
                "            version, sizes = state.dense.version + 1, {'bytes': len(data)}\n"
                "            entry = {'version': version, 'crc32c': dense.crc32c(data), **sizes}\n"
                "            entry['name'] = dense.format.dense_name(version)\n",
            ),
            Edit(
                "monolith_kv/dense_parameters.py",
                "                commit(state, dense=entry)\n",
                "                commit(state, dense=entry)\n"
                "                dense.store(state.path, version, data)\n",
            ),
        ],
        [f"{UNIT}/test_sealing.py::test_a_kill_at_any_step_leaves_a_state_before_or_after"],
    ),
    bug(
        "deleted-on-doubt",
        "files are deleted though the manifest's own flush has failed",
        "monolith_kv/catalog.py",
        "        state.manifest_error = error\n",
        "        state.manifest_error = None\n",
        f"{FLUSH}::test_nothing_is_deleted_while_the_old_manifest_may_come_back",
    ),
    bug(
        "doubt-acknowledged",
        "a seal returns as if nothing were, though the manifest's own flush has failed",
        "monolith_kv/store_handle.py",
        "        if delta is not None:\n            state.check_durable()\n",
        "",
        f"{FLUSH}::test_what_may_not_survive_a_power_cut_is_not_acknowledged",
    ),
    bug(
        "temporary-not-exclusive",
        "a temporary file may be another writer's",
        f"{STORAGE}/files.py",
        "os.O_RDWR | os.O_CREAT | os.O_EXCL | _OPEN_FLAGS, 0o600)",
        "os.O_RDWR | os.O_CREAT | _OPEN_FLAGS, 0o600)",
        f"{UNIT}/storage/test_files.py::test_a_temporary_file_is_new_or_refused",
    ),
]

READING = [
    bug(
        "crc-skipped",
        "a record's checksum is not compared",
        f"{STORAGE}/framing.py",
        "    if computed != header.crc:\n",
        "    if False:\n",
        f"{DAMAGE}::test_every_flipped_bit_is_refused_with_path_and_offset[manifest]",
    ),
    bug(
        "chain-unchecked",
        "a record may follow any other",
        f"{STORAGE}/framing.py",
        "    if previous is not None and header.previous != previous:\n",
        "    if False:\n",
        f"{DAMAGE}::test_missing_swapped_doubled_and_foreign_records_are_refused",
    ),
    bug(
        "length-uncapped",
        "a record's length is taken as it is",
        f"{STORAGE}/framing.py",
        "    if header.length > RECORD_BYTES_MAX:\n",
        "    if False:\n",
        f"{UNIT}/storage/test_record_file.py::test_a_length_in_a_header_is_never_trusted",
        f"{UNIT}/storage/test_record_file.py"
        "::test_a_record_past_the_cap_is_refused_though_its_checksum_is_good",
    ),
    bug(
        "torn-is-rot",
        "a torn tail is taken for rot",
        f"{STORAGE}/log_reader.py",
        "        self._tear(offset if start is None else start, 1 + len(later), damage)\n",
        "        raise corruption(self.path, offset, damage)\n",
        f"{UNIT}/test_store_modes.py::test_a_torn_tail_is_cut_kept_aside_and_reported",
    ),
    bug(
        "rot-is-torn",
        "rot in front of good records is taken for a torn tail, and cut",
        f"{STORAGE}/log_reader.py",
        "            if offset < durable or not self._has_hole(offset, later[0].offset):\n",
        "            if False:\n",
        f"{LOG_FILE}::test_a_garbled_record_before_a_good_one_is_rot",
    ),
    bug(
        "end-not-required",
        "a log that was closed may lack its end",
        f"{STORAGE}/log_reader.py",
        "        elif self._must_be_closed:\n",
        "        elif False:\n",
        f"{LOG_FILE}::test_a_log_known_to_be_closed_is_refused_without_its_end",
    ),
    bug(
        "tail-left",
        "a torn tail is read past, but not cut off",
        f"{STORAGE}/replay.py",
        "            files.cut_tail(path, torn.offset)\n",
        "            pass\n",
        f"{UNIT}/test_store_modes.py::test_a_torn_tail_is_cut_kept_aside_and_reported",
    ),
    bug(
        "loss-untold",
        "what a crash has taken is not told",
        "monolith_kv/opening.py",
        "    try:\n        report_losses(state)\n    finally:",
        "    try:\n        pass\n    finally:",
        f"{PROMISES}::test_calls_that_only_memory_had_are_reported_lost",
    ),
    bug(
        "replayed-twice",
        "calls that a snapshot has are made again on it",
        f"{STORAGE}/recovery.py",
        "        first = max(first, base.calls_from)\n",
        "        pass\n",
        f"{UNIT}/test_store_modes.py::test_calls_that_a_snapshot_covers_are_not_made_again",
    ),
    bug(
        "snapshot-passed-over",
        "a damaged snapshot is passed over though nothing else has its rows",
        f"{STORAGE}/recovery.py",
        'manifest.sequence and not named.get("logged", True):\n',
        "manifest.sequence and False:\n",
        f"{PROMISES}::test_a_store_whose_only_snapshot_is_damaged_does_not_start_empty",
    ),
    bug(
        "starts-empty",
        "a store that lost its manifest begins anew",
        f"{STORAGE}/manifest.py",
        "            if pattern.fullmatch(name):\n                raise",
        "            if False:\n                raise",
        f"{UNIT}/storage/test_manifest.py::test_data_without_a_manifest_is_damage_not_a_new_store",
    ),
    bug(
        "overflow-unchecked",
        "a damaged record of the overflow tier counts as good",
        f"{STORAGE}/overflow.py",
        "        is_good: NDArray[np.bool_] = outcomes == GOOD\n",
        "        is_good: NDArray[np.bool_] = outcomes != 0\n",
        f"{UNIT}/storage/test_overflow.py"
        "::test_every_flipped_bit_of_a_record_is_counted_and_left_out",
    ),
    bug(
        "fork-unlocks",
        "a forked child unlocks its parent's store",
        f"{STORAGE}/files.py",
        "                if os.getpid() == self._pid:\n                    fcntl.flock",
        "                if True:\n                    fcntl.flock",
        f"{UNIT}/storage/test_files.py::test_a_forked_child_does_not_take_the_lock_away",
    ),
    bug(
        "fork-writes",
        "a forked child's handles are taken for the parent's",
        "monolith_kv/state.py",
        "        if self.pid != os.getpid():\n            raise ForkedError",
        "        if False:\n            raise ForkedError",
        f"{UNIT}/test_store_handles.py::test_a_forked_child_is_refused_and_the_parent_unharmed",
    ),
]

ROWS = [
    bug(
        "tombstones-left-out",
        "removals are not written to the delta",
        "monolith_kv/sealing.py",
        "        writer.removed(entry.id, without(np.concatenate(absent), np.concatenate(kept)))\n",
        "        pass\n",
        f"{DELTAS}::test_an_id_that_came_and_went_is_a_removal",
    ),
    bug(
        "torn-instant",
        "rows that change while a seal is written are not copied first",
        "cython_src/_shard.pyx",
        "    cdef bint is_sealed = seal_wants(shard, header[0])\n",
        "    cdef bint is_sealed = False\n",
        "tests/threads/test_calls_are_whole.py"
        "::test_what_is_published_never_cuts_a_call[none-push]",
    ),
    bug(
        "gate-goes-on",
        "counts of a gate that change while a snapshot reads them are not copied first",
        "cython_src/_sketch.pyx",
        "    if sketch.view.frozen.live == sketch.cells:\n        frozen_save(",
        "    if False:\n        frozen_save(",
        "tests/property/test_sketch.py"
        "::test_a_frozen_sketch_reads_as_it_was_while_counting_goes_on",
    ),
    bug(
        "abort-forgets",
        "what a seal that failed had found touched is not in the next one",
        "cython_src/_view.pyx",
        "        shard.touched = shard.seal_fids\n        buffer_init(&shard.seal_fids)\n",
        "",
        f"{UNIT}/test_sealing.py::test_a_seal_that_failed_counts_in_the_next",
    ),
    bug(
        "older-sealed",
        "while a seal is written, a damaged row is taken from the seal before",
        "cython_src/_views.pyx",
        "                if shard.is_sealing:\n",
        "                if False:\n",
        f"{ROT}::test_a_damaged_record_that_no_delta_has_is_refused_and_opening_again_recovers",
    ),
    bug(
        "older-refilled",
        "a damaged row is taken from before a damaged delta that may have it",
        "monolith_kv/refill.py",
        "                latest.clear()",
        "                pass",
        f"{ROT}::test_a_damaged_record_is_never_filled_from_before_a_damaged_delta",
    ),
    bug(
        "jump-empties",
        "a clock that jumps ahead expires a whole table",
        "monolith_kv/compaction.py",
        "        if step.expired > SUSPECT_ROWS and 2 * step.expired > rows:\n",
        "        if False:\n",
        f"{UNIT}/test_ttl.py::test_a_jump_ahead_empties_no_large_table",
    ),
    bug(
        "expires-unlogged",
        "what expires is not logged",
        "monolith_kv/compaction.py",
        "                if log is not None and len(fids):\n",
        "                if False:\n",
        f"{UNIT}/test_store_modes.py::test_every_kind_of_call_survives_a_kill",
    ),
]

# The guards of replication: each may hide that another is missing.
GUARDS = [
    bug(
        "ships-unflushed",
        "a delta is shipped before its manifest is durable",
        f"{REPLICATION}/publisher.py",
        "        files.fsync_folder(self.store_path)\n",
        "",
        f"{UNFLUSHED}::test_what_was_shipped_is_durable_at_the_primary",
    ),
    bug(
        "epoch-stays",
        "no new epoch begins after an unclean end",
        "monolith_kv/opening.py",
        "        lineage = lineage.begin(after=found.sequence)\n        if marks",
        "        if marks",
        f"{UNIT}/test_store_modes.py::test_a_kill_falls_back_to_the_last_seal",
    ),
    bug(
        "gap-unchecked",
        "a replica applies a delta that is not the next one",
        "monolith_kv/applying.py",
        "    if sequence != applied + 1:\n",
        "    if False:\n",
        f"{DELTAS}::test_a_delta_out_of_order_is_a_gap",
    ),
    bug(
        "epoch-unchecked",
        "a replica applies a delta of another history",
        "monolith_kv/applying.py",
        "    if found.uuid and not lineage.extends(found.lineage, applied):\n",
        "    if False:\n",
        f"{DELTAS}::test_a_replica_that_followed_the_old_primary_too_far_is_fenced",
    ),
    bug(
        "applied-again",
        "a delta that is delivered again is applied again",
        "monolith_kv/applying.py",
        "    if found.uuid and sequence <= applied:\n",
        "    if False:\n",
        f"{DELTAS}::test_re_delivery_is_false_and_changes_nothing",
    ),
    bug(
        "position-alone",
        "a replica's position is durable without its rows",
        "monolith_kv/applying.py",
        "        deltas=[*found.deltas, named],\n",
        "        deltas=found.deltas,\n",
        f"{DELTAS}::test_a_replica_keeps_position_and_rows_over_a_reopen",
    ),
    bug(
        "follows-the-empty",
        "a replica follows a primary that came back empty",
        f"{REPLICATION}/build.py",
        "    if 2 * rows_new < rows:\n",
        "    if False:\n",
        f"{FOLLOWER}::test_a_fork_with_under_half_of_the_rows_is_refused",
    ),
    bug(
        "follows-the-older",
        "a replica goes back to an older history",
        f"{REPLICATION}/replica.py",
        "            refuse_older(source, mine)\n",
        "            pass\n",
        f"{FOLLOWER}::test_an_older_epoch_is_refused",
    ),
    bug(
        "publisher-unfenced",
        "a primary that was replaced goes on publishing",
        f"{REPLICATION}/publisher.py",
        "        refuse_fork(source, held)\n",
        "",
        "tests/replication/test_publisher.py::test_a_stale_primary_is_fenced",
    ),
]

BUGS = {each.name: each for each in (*WRITING, *READING, *ROWS, *GUARDS)}
# Guards that mask each other: the test passes as long as one of the two holds.
MASKING = {
    ("ships-unflushed", "epoch-stays"): (
        f"{UNFLUSHED}::test_a_replica_never_stays_in_step_with_rows_that_its_primary_lost"
    ),
}
PAIRS = [*combinations([each.name for each in GUARDS], 2), ("crc-skipped", "chain-unchecked")]

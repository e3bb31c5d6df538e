"""Code broken on purpose, one place at a time: each of these must make a test fail.

    python tests/crash/mutants.py [NAME …]

copies the package, breaks it, runs the tests that are to notice, and tells which mutants live. `tox -e mutants` does so
for all of them.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Mutant(NamedTuple):
    """One way to break the code.

    Attributes:
        name: What is broken.
        file: Where, below `microdb/`.
        old: What stands there, exactly once.
        new: What stands there instead.
        tests: What must fail: arguments of pytest.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str


_OVERLAY = (
    "    overlay = Overlay() if chosen is None else overlay_of(chosen.run.payloads, log.keys, chosen.log.file.path)"
)
_FSYNC = "tests/crash/test_failed_fsync.py"
_EXPIRY = "tests/test_expiry.py"
_WATCH = "tests/test_watch.py tests/test_asyncio.py"
_STRAIGHT = "tests/test_straight.py"
_KILLS = "tests/crash/test_syscall_kills.py"
_POWER = "tests/crash/test_power_cut.py"

MUTANTS = [
    Mutant(
        "a draft after a failed fsync counts as published",
        "recovery.py",
        " and not _is_draft(one)",
        "",
        _FSYNC,
    ),
    Mutant(
        "a log that was written to counts as a draft",
        "recovery.py",
        "log.after_failure and newer.last_change == log.base_sequence and not newer.tail",
        "log.after_failure",
        _FSYNC,
    ),
    Mutant(
        "a snapshot whose name is not fsynced puts the old log away",
        "wal/file_log.py",
        "            header.seal(words, generation, size)\n            self.generations.retire",
        "            header.seal(words, generation, size)\n        self.generations.retire",
        _FSYNC,
    ),
    Mutant(
        "recovery puts it away",
        "recovery.py",
        "    if poisoned != end.generation:\n",
        "    if True:\n",
        _FSYNC,
    ),
    Mutant(
        "an fsync that failed once is believed the next time",
        "wal/file_log.py",
        "if self.words[POISONED] == log.generation:",
        "if False:",
        _FSYNC,
    ),
    Mutant(
        "an append does not look whether the log ends where it did",
        "wal/file_log.py",
        "        if log.file.size() != offset:\n",
        "        if False:\n",
        "tests/test_bad_files.py",
    ),
    Mutant(
        "nor does one that goes straight",
        "wal/file_log.py",
        " or log.file.size() != offset:",
        ":",
        _STRAIGHT,
    ),
    Mutant(
        "an upsert goes straight over a write that was left unfinished",
        "wal/file_log.py",
        "            or words[DIRTY]\n",
        "",
        _STRAIGHT,
    ),
    Mutant(
        "an upsert goes straight over what another has written",
        "wal/file_log.py",
        "            words[HEAD] != head\n            or words",
        "            words",
        _STRAIGHT,
    ),
    Mutant(
        "an upsert goes straight beside a lock of its own thread",
        "appending.py",
        "if is_mine() or self._commits",
        "if self._commits",
        _STRAIGHT,
    ),
    Mutant(
        "an upsert goes straight where others wait to be taken along",
        "appending.py",
        "if is_mine() or self._commits.waiting:\n",
        "if is_mine():\n",
        _STRAIGHT,
    ),
    Mutant(
        "an upsert goes straight in a child that Python does not know of",
        "appending.py",
        "self._transaction is not None or self._pid != os.getpid():\n            return False\n        log",
        "self._transaction is not None:\n            return False\n        log",
        "tests/test_fork.py",
    ),
    Mutant(
        "an upsert goes straight past a close",
        "appending.py",
        "                with self._appending:\n                    table =",
        "                with threading.RLock():\n                    table =",
        f"{_STRAIGHT} --timeout 20",
    ),
    Mutant(
        "what another thread has read first is done to the table again",
        "appending.py",
        "            if self._position is not table:\n                return\n",
        "",
        "tests/test_handle.py",
    ),
    Mutant(
        "durability power does not fsync",
        "wal/file_log.py",
        "            if sync:\n                self.sync_file(log)\n",
        "            if sync:\n                pass\n",
        _POWER,
    ),
    Mutant(
        "an append publishes before it writes",
        "wal/file_log.py",
        "            file.write_at(data, offset)\n",
        "            words[HEAD] = head + length\n            file.write_at(data, offset)\n",
        f"{_KILLS} -k inside_a_write",
    ),
    Mutant(
        "an append publishes with two stores",
        "wal/file_log.py",
        "            words[HEAD] = head + length\n",
        "            words[HEAD] = head + length >> 16 << 16\n            words[HEAD] = head + length\n",
        f"{_KILLS} -m long -k 'any_store and upsert'",
    ),
    Mutant(
        "a dead owner's write is not taken back",
        "wal/file_log.py",
        "        if self.words[DIRTY]:\n            self.repair()\n",
        "",
        f"{_KILLS} -m long -k 'any_store and upsert'",
    ),
    Mutant(
        "the old log is put away before the folder of the snapshot is fsynced",
        "save.py",
        """        log.files.sync_folder(log.paths.parent)
        log.publish_generation(end.generation, end.offset, salt)
""",
        """        log.publish_generation(end.generation, end.offset, salt)
        log.files.sync_folder(log.paths.parent)
""",
        "tests/crash/test_crash_states.py",
    ),
    Mutant(
        "a log is cut before all in it was read",
        "recovery.py",
        f"{_OVERLAY}\n"
        "    if log.read_only:\n"
        "        return _start_read_only(found, decision, overlay, log)\n"
        "    expires = Expiring in set(map(type, overlay.records.values()))\n"
        "    end = apply(found, decision, log, header_file, expires=expires)\n",
        "    end = apply(found, decision, log, header_file, expires=False) if not log.read_only else None\n"
        f"{_OVERLAY}\n"
        "    if log.read_only:\n"
        "        return _start_read_only(found, decision, overlay, log)\n",
        "tests/test_handle.py",
    ),
    Mutant(
        "filelock is called where a signal handler may come",
        "save_lock.py",
        "            self._is_threaded = _thread.start_new_thread(self._run, (life,)) is not None\n",
        "            raise RuntimeError\n",
        "tests/test_save_lock.py",
    ),
    Mutant(
        "a handler waits for who waits for the reader that it interrupted",
        "locks.py",
        "        if timeout_s != 0:\n            self.check_may_wait()\n",
        "",
        "tests/test_handle.py --timeout 20",
    ),
    Mutant(
        "a dead saver's switch is not finished",
        "wal/file_log.py",
        "if not self._finish_save(generation):",
        "if True:",
        f"{_KILLS} -m long -k 'any_store and behind_its'",
    ),
    Mutant(
        "a switch does not set dirty",
        "save.py",
        "        log.words[DIRTY] = os.getpid()\n",
        "",
        f"{_KILLS} -m long -k 'any_system_call and save and not open'",
    ),
    Mutant(
        "a switch publishes before the snapshot is in place",
        "save.py",
        """        log.files.rename(draft.snapshot.path, log.paths.snapshot)
        in_place = True
        log.files.sync_folder(log.paths.parent)
        log.publish_generation(end.generation, end.offset, salt)
""",
        """        log.publish_generation(end.generation, end.offset, salt)
        log.files.rename(draft.snapshot.path, log.paths.snapshot)
        in_place = True
        log.files.sync_folder(log.paths.parent)
""",
        f"{_KILLS} -m long -k 'any_system_call and save and not open'",
    ),
    Mutant(
        "what dead savers left stays",
        "wal/generations.py",
        "if self._paths.is_temporary(name, inside_lock=inside_lock):",
        "if False:",
        f"{_KILLS} -m long -k 'inside_any and save and not open'",
    ),
    Mutant(
        "a batch is appended in parts",
        "mapping.py",
        "                self._append(encode_upserts(plain), Upserts(keys, copies))\n",
        """                for one in zip(keys, copies, strict=True):
                    self._append(encode_upserts([one[1]]), [one])
""",
        f"{_KILLS} -m long -k 'inside_any and upsert_many'",
    ),
    Mutant(
        "sync does not fsync",
        "wal/file_log.py",
        "        self.sync_file(log)\n        # Only a hint",
        "        # Only a hint",
        f"{_POWER} -m long",
    ),
    Mutant(
        "the new snapshot is not fsynced",
        "save.py",
        "    file.sync()\n    return file, state.digest()",
        "    return file, state.digest()",
        f"{_POWER} -m long -k xfs",
    ),
    Mutant(
        "the page is trusted after a reboot",
        "wal/header.py",
        '        and (words[_BOOT], words[_BOOT + 1]) == struct.unpack("=QQ", boot_id)\n',
        "",
        f"{_POWER} -m long",
    ),
    Mutant(
        "a new log is not fsynced",
        "wal/log_file.py",
        "        file.sync()\n",
        "",
        f"{_POWER} -m long",
    ),
    Mutant(
        "the last frames of a new log are not fsynced",
        "save.py",
        "        draft.log.file.sync()\n",
        "",
        f"{_POWER} -m long",
    ),
    Mutant(
        "what a power cut leaves out counts as rot",
        "recovery.py",
        "if later and (not rebooted or any(frame.durable_before for frame in later)):",
        "if later:",
        f"{_POWER} -m long",
    ),
    Mutant(
        "the crc chain is not looked at",
        "wal/reader.py",
        "if crc != crc32(view[at:end], seed):",
        "if False:",
        "tests/test_reader.py tests/property/test_frames.py",
    ),
    Mutant(
        "a read does not compare the head",
        "reading.py",
        """            record = self._records.get(key) if self._words[HEAD] == self._head else self._find(key)
        except TypeError:
            self._keys.check_hash(key)
            raise
        return d""",
        """            record = self._records.get(key)
        except TypeError:
            self._keys.check_hash(key)
            raise
        return d""",
        "tests/test_processes.py",
    ),
    Mutant(
        "the lock is taken among threads alone",
        "locks.py",
        "            if self._file is not None:\n                try:\n",
        "            if False:\n                try:\n",
        "tests/test_processes.py",
    ),
    Mutant(
        "what a writer has left for later is passed over",
        "appending.py",
        "                self._ahead = None if self._is_stuck else end\n",
        "                self._ahead = self._position = end\n",
        "tests/test_handle.py",
    ),
    Mutant(
        "the crc of the last frame is not looked at by who writes behind it",
        "wal/reader.py",
        "return (sequence, crc) if crc32(data[at:end], seed) == crc else None",
        "return (sequence, crc)",
        "tests/test_reader.py",
    ),
    Mutant(
        "who has met damage amid its own write goes on writing",
        "appending.py",
        "                self._ahead = None if self._is_stuck else end\n",
        "                self._ahead = end\n",
        "tests/test_handle.py",
    ),
    Mutant(
        "a failed fsync of an old log makes the current one good",
        "wal/file_log.py",
        "max(self.words[POISONED], log.generation)",
        "log.generation",
        "tests/test_file_log.py",
    ),
    Mutant(
        "a fork comes amid an import",
        "save_lock.py",
        "        with imports.guard:\n            import filelock",
        "        if True:\n            import filelock",
        "tests/test_fork.py",
    ),
    Mutant(
        "a claim does not look at the lease of another",
        "claims.py",
        'if claim["until"] is None or claim["until"] <= now:',
        "if True:",
        "tests/test_claims.py",
    ),
    Mutant(
        "an edit reads without the lock",
        "edits.py",
        """        with self.lock():
            begun = self._begin(record_or_key, create=create)
            yield begun.record""",
        """        with contextlib.nullcontext():
            begun = self._begin(record_or_key, create=create)
            yield begun.record""",
        "tests/test_edits.py",
    ),
    Mutant(
        "what a save carries over counts as changes",
        "recovery.py",
        "self.run.end.sequence - sum(1 for _ in takewhile(is_carried, reversed(self.run.payloads)))",
        "self.run.end.sequence",
        _EXPIRY,
    ),
    Mutant(
        "a draft after a failed fsync into which times were carried counts as published",
        "recovery.py",
        "newer.last_change == log.base_sequence and not newer.tail",
        "not newer.data",
        _FSYNC,
    ),
    Mutant(
        "a save does not carry times over",
        "save.py",
        "carried = _carried(source.expiring(), encoded)",
        "carried: Sequence[bytes] = []",
        _EXPIRY,
    ),
    Mutant(
        "a save carries over what was when it began",
        "save.py",
        "_carried(source.expiring(), encoded)",
        "[join([item]) for item in encoded.values()]",
        _EXPIRY,
    ),
    Mutant(
        "a save does not say that it carries times over",
        "save.py",
        "    if carried:\n",
        "    if False:\n",
        _EXPIRY,
    ),
    Mutant(
        "a save does not delete what has expired",
        "handle.py",
        "if not self._log.is_poisoned():\n            with",
        "if False:\n            with",
        _EXPIRY,
    ),
    Mutant(
        "a save of a log that cannot be appended to is given up for what has expired",
        "handle.py",
        "contextlib.suppress(StorageError)",
        "contextlib.nullcontext()",
        _EXPIRY,
    ),
    Mutant(
        "a record that expires is published without a word",
        "appending.py",
        "            if expires:  # Whoever",
        "            if False:  # Whoever",
        _EXPIRY,
    ),
    Mutant(
        "of a group that is written together, only the first tells that it expires",
        "appending.py",
        "any(one.expires for one in group)",
        "group[0].expires",
        _EXPIRY,
    ),
    Mutant(
        "a transaction forgets that it expires",
        "handle.py",
        "expires=transaction.expires",
        "expires=False",
        _EXPIRY,
    ),
    Mutant(
        "recovery forgets that records expire",
        "recovery.py",
        "    expires = Expiring in set(map(type, overlay.records.values()))\n",
        "    expires = False\n",
        _EXPIRY,
    ),
    Mutant(
        "a table in which records expire is read the short way",
        "open_table.py",
        "            is_open = False\n",
        "            pass\n",
        _EXPIRY,
    ),
    Mutant(
        "who reads only takes a page that nobody keeps up at its word",
        "open_table.py",
        " or not self._log.is_followed())",
        ")",
        _EXPIRY,
    ),
    Mutant(
        "who follows a save reads again what it carried over",
        "open_table.py",
        "if end.generation != after.generation:",
        "if False:",
        _EXPIRY,
    ),
    Mutant(
        "an edit begins what has expired with its old time",
        "edits.py",
        "return _Begun(key, begun, before, None)",
        "return _Begun(key, begun, before, getattr(found, 'expires_at', None))",
        _EXPIRY,
    ),
    Mutant(
        "nothing is dropped as records that expire come",
        "handle.py",
        "len(self._records) > self._drop_above",
        "False",
        _EXPIRY,
    ),
    Mutant(
        "what has expired is looked for with each write",
        "handle.py",
        "2 * len(self._records)",
        "0",
        _EXPIRY,
    ),
    Mutant(
        "repair forgets times",
        "repair/command.py",
        "if type(record) is Expiring:",
        "if False:",
        "tests/test_repair.py -k expires",
    ),
    Mutant(
        "whoever writes wakes nobody",
        "appending.py",
        "            if is_awaited:\n                ring(words)\n        except BaseException:\n            # If",
        "            if False:\n                ring(words)\n        except BaseException:\n            # If",
        _WATCH,
    ),
    Mutant(
        "whoever upserts wakes nobody",
        "appending.py",
        "            if is_awaited:\n                ring(words)\n        except BaseException:\n            lock.",
        "            if False:\n                ring(words)\n        except BaseException:\n            lock.",
        _STRAIGHT,
    ),
    Mutant(
        "a save that moves the head wakes nobody",
        "wal/file_log.py",
        "if is_awaited:",
        "if False:",
        _WATCH,
    ),
    Mutant(
        "whoever sleeps does not say so",
        "wal/bell.py",
        "words[WAITING] = max(words[WAITING], head)",
        "pass",
        _WATCH,
    ),
    Mutant(
        "each of several changes made as one bears the position behind them",
        "feed.py",
        "for event in events[:-1]:\n                    self._ready = event",
        "for event in events[:-1]:\n                    self._ready = event._replace(position=end)",
        _WATCH,
    ),
    Mutant(
        "a clear of a table that is unknown is not told",
        "feed.py",
        "bool(event.parts) or not self._is_whole",
        "bool(event.parts)",
        _WATCH,
    ),
    Mutant(
        "what has expired since a position is passed over",
        "feed.py",
        "unexpired(records, source.clock()) if since is None else records",
        "unexpired(records, source.clock())",
        _WATCH,
    ),
    Mutant(
        "two tasks of one event loop have the lock at once",
        "async_watching.py",
        "await tasks.lock.acquire()",
        "pass",
        _WATCH,
    ),
]


def apply(mutant, package):
    """Break a copy of the package."""
    file = package / mutant.file
    text = file.read_text()
    found = text.count(mutant.old)
    if found != 1:
        raise ValueError(f"{mutant.name}: stands {found} times in {mutant.file}, and must stand there once")
    file.write_text(text.replace(mutant.old, mutant.new))


def is_noticed(mutant):
    """Whether the tests fail on a broken copy."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("microdb", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        apply(mutant, copy / "microdb")
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *shlex.split(mutant.tests)]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
        run = subprocess.run(
            command, cwd=copy, env={**environment, "PYTHONPATH": folder}, capture_output=True, text=True, check=False
        )
        if run.returncode not in (0, 1):
            raise RuntimeError(f"{mutant.name}: pytest broke off\n{run.stdout}{run.stderr}")
        return run.returncode == 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="*", help="parts of the names of those to run; default: all")
    names = parser.parse_args().name
    chosen = [one for one in MUTANTS if not names or any(name in one.name for name in names)]
    alive = []
    for mutant in chosen:
        began = time.monotonic()
        noticed = is_noticed(mutant)
        print(f"{'killed' if noticed else 'ALIVE '} {time.monotonic() - began:6.1f} s  {mutant.name}", flush=True)
        if not noticed:
            alive.append(mutant)
    print(f"figures: {len(chosen)} mutants, {len(chosen) - len(alive)} killed")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())

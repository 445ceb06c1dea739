"""Downloaded adapters on disk, bounded, shared by every weft that uses the folder.

    entries/<key>/       what was downloaded, whole; entry.json says what it is and is its lock
    partial/<key>/       what is being downloaded; partial/<key>.lock is held by whoever does it
    refs/<key>           what a source without a fixed version meant last
    lock                 held by whoever makes room

A key is a hash of a source with its version, so what an entry holds never changes. All locks are
flock's, which the kernel releases with the process that held them, however it ended. So whatever
lies in ``partial`` with nobody's lock is a dead process's, and goes.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from weft.actors.adapters.errors import BadAdapter, Unavailable

_ENTRY = "entry.json"
_DIGEST = "digest"
_GONE = ".gone"
_LOCK = ".lock"


class Entry(msgspec.Struct, frozen=True):
    """What ``entry.json`` says."""

    root: str  # the source, with its version
    size_bytes: int


class Meaning(msgspec.Struct, frozen=True):
    """What a source meant when it was last looked up."""

    source: str
    root: str


class Lease:
    """An entry that stays while this is open."""

    def __init__(self, folder: Path, descriptor: int) -> None:
        self.folder = folder
        self._descriptor = descriptor

    def close(self) -> None:
        """Let the entry be evicted again."""
        os.close(self._descriptor)


class _Found(NamedTuple):
    folder: Path
    entry: Entry
    used_ns: int


class DiskCache:
    """A folder of this layout; the one used longest ago leaves first. Any number may be open."""

    def __init__(self, folder: Path, bytes_max: int) -> None:
        """Make the folder, readable by this user alone, if it is not there. Raises ``OSError``."""
        self._folder = folder
        self._bytes_max = bytes_max
        self._entries, self._partial, self._refs = (
            folder / name for name in ("entries", "partial", "refs")
        )
        for made in (folder, self._entries, self._partial, self._refs):
            made.mkdir(mode=0o700, parents=True, exist_ok=True)

    # ---- entries --------------------------------------------------------------------------------

    def lease(self, root: str) -> Lease | None:
        """Return the entry of a source with its version, if it is there; it counts as used."""
        folder = self._entries / _key(root)
        descriptor = _locked(folder / _ENTRY, fcntl.LOCK_SH)
        if descriptor is None:
            return None
        os.utime(descriptor)
        return Lease(folder, descriptor)

    def digest(self, root: str) -> str | None:
        """Return the digest that was noted of an entry's adapter."""
        try:
            return (self._entries / _key(root) / _DIGEST).read_text()
        except OSError:
            return None

    def note_digest(self, root: str, digest: str) -> None:
        """Note an adapter's digest: a damaged copy is then known from a sound one."""
        with suppress(OSError):  # it is evicted, or the disk is full: it is only not known
            _write(self._entries / _key(root) / _DIGEST, digest.encode())

    def forget(self, root: str) -> None:
        """Remove an entry that is not what it should be, unless somebody reads it."""
        with self._lock():
            self._evict(self._entries / _key(root))

    # ---- sources whose version may change -------------------------------------------------------

    def remember(self, source: str, root: str) -> None:
        """Note what a source means now."""
        with self._lock():  # whoever makes room takes unfinished notes for those of the dead
            _write(self._refs / _key(source), msgspec.json.encode(Meaning(source, root)))

    def recall(self, source: str) -> str | None:
        """Return what a source meant when it was last looked up, if that is still here."""
        try:
            meaning = msgspec.json.decode((self._refs / _key(source)).read_bytes(), type=Meaning)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return None
        is_here = (self._entries / _key(meaning.root) / _ENTRY).exists()
        return meaning.root if is_here else None

    # ---- making entries -------------------------------------------------------------------------

    @contextmanager
    def filling(self, root: str, size_bytes: int) -> Iterator[Path | None]:
        """Give a folder to be filled, which then becomes the entry; None: it is there already.

        ``size_bytes`` is the most that will be written. Who comes while another process fills it
        waits for that. After an exception nothing is left. Raises ``BadAdapter`` for what is larger
        than the cache, and ``Unavailable`` if there is no room now.
        """
        key = _key(root)
        lock = self._partial / f"{key}{_LOCK}"
        descriptor = _made_and_locked(lock)
        folder = self._partial / key
        try:
            if (self._entries / key / _ENTRY).exists():
                yield None
                return
            shutil.rmtree(folder, ignore_errors=True)  # of one that died
            self._make_room(root, size_bytes, descriptor)
            folder.mkdir(mode=0o700)
            yield folder
            self._commit(folder, root)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)
            os.close(descriptor)

    def sweep(self) -> None:
        """Remove what dead processes have left."""
        with self._lock():
            self._reserved_bytes()
            for gone in self._partial.glob(f"*{_GONE}"):
                shutil.rmtree(gone, ignore_errors=True)
            for folder in self._partial.iterdir():
                if folder.is_dir() and not folder.with_name(f"{folder.name}{_LOCK}").exists():
                    shutil.rmtree(folder, ignore_errors=True)

    def _commit(self, folder: Path, root: str) -> None:
        """Make an entry of a folder: whole on the disk before it has its name."""
        size_bytes = sum(file.stat().st_size for file in folder.iterdir())
        (folder / _ENTRY).write_bytes(msgspec.json.encode(Entry(root, size_bytes)))
        for file in (*folder.iterdir(), folder):
            _sync(file)
        folder.rename(self._entries / folder.name)
        _sync(self._entries)

    def _make_room(self, root: str, size_bytes: int, descriptor: int) -> None:
        """Evict until so much more fits, and let others know that it is taken."""
        if size_bytes > self._bytes_max:
            raise BadAdapter(
                f"{root} takes {size_bytes} bytes, more than the whole of adapter_cache "
                f"({self._bytes_max}); raise adapter_cache_mib"
            )
        with self._lock():
            found = self._found()
            taken = sum(one.entry.size_bytes for one in found) + self._reserved_bytes()
            excess = taken + size_bytes - self._bytes_max
            lacking = size_bytes - shutil.disk_usage(self._folder).free
            for one in sorted(found, key=lambda one: one.used_ns):
                if excess <= 0 and lacking <= 0:
                    break
                if self._evict(one.folder):
                    excess -= one.entry.size_bytes
                    lacking -= one.entry.size_bytes
            self._prune()
            if lacking > 0:
                raise Unavailable(
                    f"the disk of {self._folder} lacks {lacking} bytes for {root}; make room there"
                )
            if excess > 0:
                raise Unavailable(
                    f"adapter_cache lacks {excess} bytes for {root} while others are read and "
                    f"downloaded; try again later, or raise adapter_cache_mib"
                )
            os.pwrite(descriptor, str(size_bytes).encode(), 0)

    def _found(self) -> list[_Found]:
        """Return every entry; one that says nothing of itself is removed."""
        found = []
        for folder in self._entries.iterdir():
            file = folder / _ENTRY
            try:
                entry = msgspec.json.decode(file.read_bytes(), type=Entry)
                found.append(_Found(folder, entry, file.stat().st_mtime_ns))
            except (OSError, msgspec.DecodeError, UnicodeDecodeError):
                shutil.rmtree(folder, ignore_errors=True)
        return found

    def _reserved_bytes(self) -> int:
        """Return what is being downloaded, and remove what was by processes that are dead."""
        reserved = 0
        for lock in self._partial.glob(f"*{_LOCK}"):
            descriptor = _locked(lock, fcntl.LOCK_EX)
            if descriptor is None:
                with suppress(OSError, ValueError):  # it has just ended, or just begun
                    reserved += int(lock.read_text())
                continue
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink(missing_ok=True)
            os.close(descriptor)
        return reserved

    def _evict(self, folder: Path) -> bool:
        """Remove an entry unless somebody reads it; return whether it is gone."""
        descriptor = _locked(folder / _ENTRY, fcntl.LOCK_EX)
        if descriptor is None:
            return not folder.exists()
        try:
            gone = self._partial / f"{folder.name}{_GONE}"
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
        finally:
            os.close(descriptor)
        return True

    def _prune(self) -> None:
        """Remove the notes of what sources meant that is not here any more."""
        for ref in self._refs.iterdir():
            with suppress(OSError, msgspec.DecodeError, UnicodeDecodeError):
                meaning = msgspec.json.decode(ref.read_bytes(), type=Meaning)
                if (self._entries / _key(meaning.root)).exists():
                    continue
            ref.unlink(missing_ok=True)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _key(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()[:32]


def _locked(file: Path, kind: int) -> int | None:
    """Lock a file at once and return its descriptor; None: it is gone, or another has it."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink > 0:
            return descriptor
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EINTR):
            os.close(descriptor)
            raise
    os.close(descriptor)
    return None


def _made_and_locked(file: Path) -> int:
    """Make a file, lock it, waiting for whoever has it, and return its descriptor."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Whoever had it has removed it: what is locked then is no longer what others find.
        if os.fstat(descriptor).st_nlink > 0:
            os.ftruncate(descriptor, 0)  # of one that died
            return descriptor
        os.close(descriptor)


def _write(file: Path, content: bytes) -> None:
    """Put a small file in place, whole."""
    partial = file.with_name(f"{file.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(file)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

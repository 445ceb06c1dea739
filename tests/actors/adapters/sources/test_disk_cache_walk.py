"""Several processes at one cache, of which some are killed at any moment."""

import random
import subprocess
import sys
import time

import pytest

from weft.actors.adapters.sources.disk_cache import DiskCache

pytestmark = pytest.mark.slow

BYTES_MAX = 10_000

# Fills, reads, forgets and looks up at random; an entry's bytes all say which one it is.
WALK = """
import random, sys
from pathlib import Path
from weft.actors.adapters.sources.disk_cache import DiskCache

def expect(folder, number):
    names = sorted(path.name for path in folder.iterdir() if path.name.startswith("part"))
    assert names == ["part0", "part1"], names
    for name in names:
        content = (folder / name).read_bytes()
        assert len(content) == 100 * number and set(content) == {number}, (number, content[:9])

from weft.actors.adapters.errors import Unavailable
cache = DiskCache(Path(sys.argv[1]), int(sys.argv[2]))
rng = random.Random(int(sys.argv[3]))
print("ready", flush=True)
for _ in range(int(sys.argv[4])):
    number = rng.randint(1, 15)
    root = f"root{number}"
    match rng.randrange(6):
        case 0:
            cache.forget(root)
        case 1:
            cache.remember(f"source{rng.randrange(3)}", root)
        case 2:
            cache.sweep()
        case _:
            if (lease := cache.lease(root)) is not None:
                expect(lease.folder, number)
                lease.close()
                continue
            try:
                with cache.filling(root, 200 * number) as folder:
                    if folder is not None:
                        for name in ("part0", "part1"):
                            (folder / name).write_bytes(bytes([number]) * (100 * number))
            except Unavailable:
                pass
"""


def walker(place, seed, turns):
    return subprocess.Popen(
        [sys.executable, "-c", WALK, str(place), str(BYTES_MAX), str(seed), str(turns)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_processes_that_share_a_cache_and_die_leave_it_whole_and_within_its_bound(tmp_path):
    rng = random.Random(7)
    cache = DiskCache(tmp_path, BYTES_MAX)
    living = [walker(tmp_path, seed, 150) for seed in range(3)]
    for seed in range(3, 9):
        doomed = walker(tmp_path, seed, 10**9)
        assert doomed.stdout.readline() == b"ready\n", doomed.stderr.read()
        time.sleep(rng.random() / 5)
        doomed.kill()
        doomed.communicate()
        check(cache)
    ends = [(process.communicate(timeout=300)[1], process.returncode) for process in living]
    assert ends == [(b"", 0)] * 3
    cache.sweep()
    assert list((tmp_path / "partial").iterdir()) == []
    check(cache)
    for number in range(1, 16):
        with cache.filling(f"root{number}", 200 * number) as folder:
            if folder is not None:
                (folder / "part0").write_bytes(bytes(200 * number))
    check(cache)


def check(cache):
    """What is told of entries is true of those that are still there, and they are not too many."""
    sizes = [found.entry.size_bytes for found in cache._found()]
    assert sum(sizes) <= BYTES_MAX

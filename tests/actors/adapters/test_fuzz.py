"""Thousands of mutated adapters through real child processes, and a store that they surround."""

import random
import threading
from collections import Counter
from pathlib import Path

import pytest
import safetensors.numpy

from tests.actors.adapters.folders import folder, own_folder, save_base, tensors
from tests.actors.adapters.mutations import WEIGHTS_NAME, mutated
from tests.actors.adapters.sandboxed import outcomes, write
from weft.actors.adapters.errors import BadAdapter
from weft.actors.adapters.files import FileError, LocalFiles
from weft.actors.adapters.reading import read
from weft.runtime.config import Config

SEEDS = range(5)
MUTATIONS = 500


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base that has weights, with which adapters' own are compared."""
    return save_base(tmp_path_factory.mktemp("base"))


def expected(path, base):
    """What this process makes of a folder: the file's bytes, or a reason."""
    limit = Config(model="/base").whole_modules_bytes_max
    try:
        found = read(LocalFiles(), str(path), base, rank_max=64, whole_bytes_max=limit)
        return b"".join(found.file())
    except (BadAdapter, FileError) as error:
        return str(error)


def made(result):
    """The same of what a child made of it."""
    if isinstance(result, BadAdapter):
        return str(result)
    path = Path(result.file)
    content = path.read_bytes()
    path.unlink()
    assert len(content) == result.facts.size_bytes
    return content


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_mutated_adapter_is_refused_with_a_reason_or_is_what_it_says(
    loader, base, tmp_path, seed
):
    rng = random.Random(seed)
    paths = [tmp_path / str(i) for i in range(MUTATIONS)]
    for path in paths:
        mutated(rng, path)
    good = write(tmp_path / "good", folder(weights=tensors(seed=9)))
    own = write(tmp_path / "own", own_folder())
    sources = [*map(str, paths), own, good]
    results = outcomes(loader, [loader.start(source, with_file=True) for source in sources])
    found = [made(result) for result in results]
    kinds = Counter(type(each) for each in found)
    assert min(kinds[str], kinds[bytes]) > MUTATIONS // 10
    for path, each in zip(sources, found, strict=True):
        assert each == expected(path, base), path
        if isinstance(each, str):
            assert 10 < len(each) <= 1024
            assert each.isprintable()
        else:
            assert safetensors.numpy.load(each)
    assert [type(each) for each in found[-2:]] == [bytes, bytes]
    assert loader.deaths == 0  # each was refused in words


@pytest.mark.slow
def test_of_a_file_that_changes_all_the_time_nothing_half_is_taken(loader, tmp_path):
    """What is taken has the digest of what was written, whichever moment it was read at."""
    path = tmp_path / "a"
    write(path, folder())
    versions = [folder(weights=tensors(seed=seed))[WEIGHTS_NAME] for seed in range(2)]
    is_over = threading.Event()

    def change():
        rng = random.Random(0)
        while not is_over.is_set():
            content = rng.choice(versions)
            cut = rng.randrange(len(content))
            with open(path / WEIGHTS_NAME, "wb") as file:
                file.write(content[:cut])
                file.flush()
                file.write(content[cut:])

    changing = threading.Thread(target=change)
    changing.start()
    try:
        tickets = [loader.start(str(path), with_file=True) for _ in range(500)]
        results = outcomes(loader, tickets)
    finally:
        is_over.set()
        changing.join()
    refused = 0
    for result in results:
        content = made(result)
        if isinstance(content, str):
            refused += 1
        else:
            assert result.digest.encode() in content
    assert refused > 0

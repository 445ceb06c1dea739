"""Several clients, one shelf: all are answered and nothing is left, whatever they do at once."""

import pytest

from tests.sim.crowd import Crowd
from tests.sim.test_shelves import BYTES, PLACES, TIGHT


def gather(seed, model, folder, steps, **options):
    bounds = BYTES if seed // 2 % 2 else PLACES
    crowd = Crowd(
        seed, model, folder, clients=3, ranks=1 + seed % 2, is_deadly=seed % 3 > 0,
        **(TIGHT | bounds | options),
    )  # fmt: skip
    for _ in range(steps):
        crowd.step()
    return crowd.finish()


@pytest.mark.parametrize("seed", range(8))
def test_everybody_is_answered_and_nothing_is_left(seed, model, folder):
    assert gather(seed, model, folder, 100, replicas=1 + seed // 4 % 2)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 1200, 40))
def test_everybody_is_answered_and_nothing_is_left_in_many_worlds(first, model, folder):
    seen = set()
    for seed in range(first, first + 40):
        seen |= gather(seed, model, folder, 200, replicas=1 + seed // 4 % 2).keys()
    assert {"cancelled", "queue_full", "invalid_value"} < seen
    assert {"loaded", "replaced", "already_loaded", "unloaded", "pinned", "unpinned"} < seen

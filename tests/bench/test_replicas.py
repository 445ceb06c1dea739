"""That the experiment with replicas counts what it says."""

import pytest

from tests.bench import replicas
from tests.bench.replicas import run, with_adapters, with_beginnings


def loads(cluster):
    return sum(cluster.loads.values())


@pytest.mark.parametrize(
    "draw", [with_adapters, pytest.param(with_beginnings, marks=pytest.mark.slow)]
)
def test_every_method_answers_all_and_the_aware_one_does_less_for_it(draw):
    requests = draw("Zipf", 1)[:300]
    found = {method: run(2, method, requests) for method in replicas.METHODS}
    others = [found["round_robin"], found["total_tokens"]]
    aware = found["adapter_aware"]
    if draw is with_adapters:
        assert loads(aware) < 0.85 * min(map(loads, others))
    else:
        assert aware.cached > 1.1 * max(cluster.cached for cluster in others)
    for cluster in found.values():
        assert cluster.ended == len(requests)
        assert not len(cluster.router._ledger)
        cluster.router.check()
        for scheduler in cluster.schedulers.values():
            scheduler.check()
        assert min(cluster.tokens.values()) > 0.8 * max(cluster.tokens.values())

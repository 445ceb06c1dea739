"""On a CPU a step is one program: it gives the same bits as one operation after the other."""

import pytest

from tests.actors.runner.engines import harness_of, prompts_of, save_several
from weft.actors.runner import recorded
from weft.actors.runner.recorded import Recorded
from weft.kernels.paged_attention import cpu as attention
from weft.runtime.messages import RowSampling

pytestmark = pytest.mark.skipif(attention.library() is None, reason="no C compiler")

ADDED = range(160, 200)
PLAIN, SCALED, OWN = "a" * 64, "b" * 64, "c" * 64
KINDS = {
    PLAIN: {"rank": 5},
    SCALED: {"rank": 16, "vector": "magnitude"},
    OWN: {"rank": 9, "own_tokens": [3, 90, *ADDED]},
}
SUM = {PLAIN: -0.5, SCALED: 1.0}
ADAPTERS = [None, PLAIN, OWN, SCALED, SUM, {SCALED: 0.25, OWN: 1.5, PLAIN: 1.0}]


def told(folder, paths, **options):
    """Tokens and exact log probabilities of requests with any adapters and without."""
    harness = harness_of(folder, paths, max_num_batched_tokens=48, **options)
    labels = []
    for index, prompt in enumerate(prompts_of(12, longest=80)):
        sampling = RowSampling(1.0, 1.0, 0, 0.0, index, logprobs=2)
        labels.append(f"r{index}")
        harness.generate(
            labels[-1], prompt, adapter=ADAPTERS[index % len(ADAPTERS)], max_tokens=6,
            stop_token_ids=[], sampling=sampling,
        )  # fmt: skip
    harness.run()
    numbers = [harness.begun[label].first_sequence for label in labels]
    return [(harness.tokens[number], harness.logprobs[number]) for number in numbers]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("architecture", ["llama3.1", "qwen2-window", "qwen3"])
def test_a_recorded_step_gives_the_bits_of_its_operations(saved, monkeypatch, architecture, ranks):
    folder = saved(architecture)
    paths = save_several(folder.parent, folder, KINDS)
    runs, forward = [], Recorded.forward
    monkeypatch.setattr(
        Recorded, "forward", lambda self, host, own: runs.append(own) or forward(self, host, own)
    )
    together = told(folder, paths, tensor_parallel_size=ranks)
    assert len(runs) > 10
    assert {own is None for own in runs} == {True, False}
    assert any(token in ADDED for tokens, _ in together for token in tokens)
    runs.clear()
    monkeypatch.setattr(recorded, "is_possible", lambda model, group: False)
    assert told(folder, paths, tensor_parallel_size=ranks) == together
    assert runs == []

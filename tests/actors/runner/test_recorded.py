"""On a CPU a step is one program: it gives the same bits as one operation after the other."""

import pytest

from tests.actors.runner.engines import harness_of, prompts_of, save_several
from weft.actors.runner import recorded
from weft.actors.runner.recorded import Recorded
from weft.kernels.paged_attention import cpu as attention
from weft.runtime.messages import RowSampling

pytestmark = pytest.mark.skipif(attention.library() is None, reason="no C compiler")

KINDS = {"a" * 64: {"rank": 5}, "b" * 64: {"rank": 16, "vector": "magnitude"}}


def told(folder, paths, **options):
    """Tokens and exact log probabilities of requests with adapters and without."""
    harness = harness_of(folder, paths, max_num_batched_tokens=48, **options)
    digests = [None, *paths]
    labels = []
    for index, prompt in enumerate(prompts_of(12, longest=80)):
        sampling = RowSampling(1.0, 1.0, 0, 0.0, index, logprobs=2)
        labels.append(f"r{index}")
        harness.generate(
            labels[-1], prompt, adapter=digests[index % 3], max_tokens=6, stop_token_ids=[],
            sampling=sampling,
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
        Recorded, "forward", lambda self, host: runs.append(host) or forward(self, host)
    )
    together = told(folder, paths, tensor_parallel_size=ranks)
    assert len(runs) > 10
    runs.clear()
    monkeypatch.setattr(recorded, "is_possible", lambda model, group: False)
    assert told(folder, paths, tensor_parallel_size=ranks) == together
    assert runs == []

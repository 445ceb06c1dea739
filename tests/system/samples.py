"""One of every message, as it is seen in traffic."""

from weft.runtime.messages import (
    METRIC_BUCKETS_S,
    Abort,
    Accepted,
    Ack,
    Acquire,
    Acquired,
    AcquireFailed,
    AdapterEntry,
    AdapterLoad,
    AdapterMetrics,
    Begin,
    Cancel,
    Catalog,
    ChatMessage,
    Chunk,
    ClientGone,
    End,
    Generate,
    Goodbye,
    Hello,
    Inspect,
    Inspection,
    Join,
    ListModels,
    ModelEntry,
    Models,
    Refused,
    Reject,
    Release,
    Report,
    RowSampling,
    RunnerReady,
    Sampled,
    Sampling,
    Step,
    StepDone,
    StopFound,
    Submit,
    Text,
    TextLogprobs,
    TokenLogprobs,
    Welcome,
)

DIGEST = "5f" * 32
REQUEST = "c0" * 16
SAMPLING = RowSampling(
    0.8, 0.9, 40, 0.05, 7, 0.5, 0.5, 1.1, {5: -1.0}, logprobs=2, min_tokens=1, min_tokens_banned=[2]
)
COUNTS = [0] * (len(METRIC_BUCKETS_S) + 1)
METRICS = AdapterMetrics(DIGEST, ["sql"], 1, 9, 0, 12, COUNTS, 0.1, COUNTS, 0.2, True)
REFUSED = Refused("label", "queue_full", "try again later", None, 1.0)
END = End(3, "stop", 12, 4, None, 10, 21)
GENERATE = Generate(
    REQUEST, "client.x", "label", "sql", [5, 6, 7], DIGEST, "", 16, 2, [2], SAMPLING, [";"]
)
MESSAGES = [
    Submit("a", "sql", [ChatMessage(role="user", content="Hi")], sampling=Sampling(max_tokens=4)),
    Submit("b", prompt="The", sampling=Sampling(n=2, max_tokens=4, stop=[";"], logprobs=1, seed=1)),
    Submit("c", prompt=[5, 6], sampling=Sampling(max_tokens=4, logit_bias={7: 1.5}), user="me"),
    Cancel("a"),
    ListModels("d"),
    Inspect("e"),
    REFUSED,
    Models("d", [ModelEntry("base", "/m", None, None, None, 1, 64)]),
    Catalog([AdapterEntry("sql", "/a", DIGEST, 16, 1), AdapterEntry("bad", "/b", "", 0, 1, "no")]),
    GENERATE,
    Abort("client.x", "a"),
    Inspection("client.x", "e", {"tokenizer": {"waiting": 0.0}}, [METRICS]),
    Reject("client.x", REFUSED),
    Acquire(DIGEST),
    Acquired(DIGEST, "/dev/shm/a.safetensors", 16, 1000, 88),
    AcquireFailed(DIGEST, "gone"),
    Release(DIGEST),
    Step(
        7, [AdapterLoad(1, DIGEST, "/a", [6, 8])], [2],
        [Join(0, 1, 0, [4, 5], SAMPLING, 0, 3, [5, 6, 7])], [3], [9],
        [Chunk(0, 0, [5, 6, 7], True)],
    ),
    RunnerReady(0, 100, 16, 8, 16),
    StepDone(7, [5, 6], [1], [TokenLogprobs(0, -0.5, [5, 6], [-0.5, -1.5])], 900),
    Begin(3, 2, REQUEST, "client.x", "a", "sql", 3, [";"], False, True),
    Sampled([3, 4], [5, 6], [END], [TokenLogprobs(0, -0.5, [5], [-0.5])]),
    StopFound(3, 5),
    ClientGone("client.x"),
    Accepted("a", REQUEST, 3, 2, 3),
    Text([3], ["Hi"], [END], [TextLogprobs(0, "Hi", b"Hi", -0.5, [("Hi", b"Hi", -0.5)])]),
    Report("e", {"tokenizer": {"waiting": 0.0}}, [METRICS]),
    Hello(64),
    Welcome(64),
    Ack(),
    Goodbye(),
]  # fmt: skip

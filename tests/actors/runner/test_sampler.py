from collections import Counter

import msgspec
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from weft.actors.runner.sampler import Sampler
from weft.runtime.messages import Join, RowSampling

VOCABULARY = 100
NAN, INFINITY = float("nan"), float("inf")
GREEDY = RowSampling(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, seed=0)
RANDOM = RowSampling(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, seed=0)
PROMPT = [1, 2, 2, 3]


def rules(base=GREEDY, **changes):
    return msgspec.structs.replace(base, **changes)


def join(row, sampling, *, choice=0, prompt_tokens=4, history=None):
    """Behind PROMPT, unless told otherwise."""
    return Join(row, [], 0, [], sampling, choice, prompt_tokens, history)


def logits_of(rows, *, vocabulary=VOCABULARY, seed=0):
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 2


def sampler_of(*each, output=(), choice=0):
    """A sampler in which row i follows ``each[i]``, after PROMPT and ``output``."""
    sampler = Sampler()
    for row, sampling in enumerate(each):
        history = [*PROMPT, *output] if sampling.needs_history else None
        sampler.join(join(row, sampling, choice=choice, history=history))
    return sampler


def sample(each, logits, *, output=(), choice=0):
    """Draw one token for each row of ``logits``."""
    made = sampler_of(*each, output=output, choice=choice)
    position = len(PROMPT) + len(output)
    return made.sample(logits.clone(), range(len(each)), [position] * len(each))


def chosen(sampling, logits, **options):
    [token] = sample([sampling], logits[None], **options).tokens.tolist()
    return token


def test_greedy_takes_the_most_likely_token_and_of_equals_the_first():
    logits = logits_of(5)
    logits[3, [20, 70]] = 50.0
    drawn = sample([GREEDY] * 5, logits)
    assert drawn.tokens.tolist() == logits.argmax(-1).tolist()
    assert drawn.tokens[3] == 20
    assert drawn.failed == []


def test_a_token_depends_on_seed_choice_and_position_and_on_nothing_else():
    logits = torch.zeros(1, 5000)

    def token(*, seed=7, choice=0, output=0, row=0):
        made = Sampler()
        made.join(join(row, rules(RANDOM, seed=seed), choice=choice))
        return int(made.sample(logits.clone(), [row], [len(PROMPT) + output]).tokens[0])

    assert token() == token(row=31)
    assert len({token(), token(seed=8), token(choice=1), token(output=1)}) == 4


def test_the_most_extreme_seeds_are_taken():
    for seed in (0, 2**63 - 1):
        assert 0 <= chosen(rules(RANDOM, seed=seed), logits_of(1)[0]) < VOCABULARY


def test_frequencies_follow_transformers_with_every_filter_in_the_documented_order():
    """Temperature, min-p, top-k, top-p: with these numbers any other order keeps other tokens."""
    logits = torch.tensor([3.0, 2.6, 2.2, 1.9, 1.2, 0.6, 0.2, -1.0])
    sampling = rules(RANDOM, temperature=1.6, min_p=0.3, top_k=5, top_p=0.85)
    warpers = [
        TemperatureLogitsWarper(1.6),
        MinPLogitsWarper(0.3),
        TopKLogitsWarper(5),
        TopPLogitsWarper(0.85),
    ]
    expected = LogitsProcessorList(warpers)(None, logits[None].clone())[0].softmax(-1)
    unscaled = LogitsProcessorList([*warpers[1:], warpers[0]])(None, logits[None].clone())[0]
    top_p_first = LogitsProcessorList([warpers[0], warpers[3], *warpers[1:3]])(
        None, logits[None].clone()
    )[0]
    for other in (unscaled, top_p_first):
        assert not (other > -INFINITY).equal(expected > 0)

    count = 20_000
    each = [rules(sampling, seed=seed) for seed in range(count)]
    observed = Counter(sample(each, logits.expand(count, -1)).tokens.tolist())
    kept = expected.nonzero().flatten().tolist()
    assert sorted(observed) == kept
    wanted = {token: float(expected[token]) * count for token in kept}
    chi_square = sum((observed[token] - wanted[token]) ** 2 / wanted[token] for token in kept)
    assert chi_square < 20.5  # 99.9 % for up to 5 degrees of freedom


@pytest.mark.parametrize("temperature", [1e-3, 1e-12, 1e-30, 1e-42, 1e-300])
def test_a_temperature_near_zero_is_greedy(temperature):
    logits = logits_of(8)
    drawn = sample([rules(RANDOM, temperature=temperature, seed=3)] * 8, logits)
    assert drawn.tokens.tolist() == logits.argmax(-1).tolist()


def test_bias_and_bans_equal_transformers():
    logits, output = logits_of(1)[0], [5]
    best = logits.topk(4).indices.tolist()
    biases = {best[0]: -100.0, best[1]: -3.5, best[3]: 0.25}
    sampling = rules(logit_bias=biases, min_tokens=2, min_tokens_banned=[best[2], 0])
    processors = LogitsProcessorList(
        [
            SequenceBiasLogitsProcessor({(token,): bias for token, bias in biases.items()}),
            MinNewTokensLengthLogitsProcessor(len(PROMPT), 2, [best[2], 0], device="cpu"),
        ]
    )
    expected = processors(torch.tensor([[*PROMPT, *output]]), logits[None].clone())[0]
    assert chosen(sampling, logits, output=output) == int(expected.argmax())
    assert int(expected.argmax()) not in best[:3]


def test_tokens_are_banned_until_min_tokens_have_been_drawn():
    logits = torch.zeros(VOCABULARY)
    logits[9] = 5.0
    sampling = rules(min_tokens=2, min_tokens_banned=[9])
    assert chosen(sampling, logits, output=[]) != 9
    assert chosen(sampling, logits, output=[4]) != 9
    assert chosen(sampling, logits, output=[4, 4]) == 9


def test_penalties_equal_transformers_and_openai():
    logits, output = logits_of(1)[0], [7, 8, 8]
    logits[[1, 7, 8, 40]] = torch.tensor([4.0, 9.0, 12.0, 6.2])
    penalty = RepetitionPenaltyLogitsProcessor(1.2)
    expected = penalty(torch.tensor([[*PROMPT, *output]]), logits[None].clone())[0]
    expected[7] -= 0.5 + 0.75
    expected[8] -= 0.5 + 2 * 0.75
    sampling = rules(repetition_penalty=1.2, presence_penalty=0.5, frequency_penalty=0.75)
    assert chosen(sampling, logits, output=output) == int(expected.argmax())
    # Each token that is drawn counts from the next one on.
    made = sampler_of(sampling, output=output)
    for position in range(7, 27):
        [token] = made.sample(logits[None].clone(), [0], [position]).tokens.tolist()
        assert token == int(expected.argmax())
        output = [*output, token]
        expected = penalty(torch.tensor([[*PROMPT, *output]]), logits[None].clone())[0]
        for seen in set(output):
            expected[seen] -= 0.5 + output.count(seen) * 0.75
    assert len(set(output)) > 5


@pytest.mark.parametrize("repetition", [1e-300, 1e-30, 1e30, 1e300])
def test_absurd_penalties_draw_a_token_of_the_vocabulary_or_fail(repetition):
    each = [rules(RANDOM, repetition_penalty=repetition), rules(RANDOM, seed=5)]
    drawn = sample(each, logits_of(2), output=[4, 5])
    assert all(0 <= token < VOCABULARY for token in drawn.tokens.tolist())
    assert drawn.failed in ([], [0])
    assert drawn.tokens[1] == chosen(each[1], logits_of(2)[1], output=[4, 5])


MIXED = [
    GREEDY,
    rules(RANDOM, seed=1),
    rules(RANDOM, temperature=0.3, seed=2),
    rules(RANDOM, top_k=5, seed=3),
    rules(RANDOM, top_p=0.7, seed=4),
    rules(RANDOM, min_p=0.1, seed=5),
    rules(RANDOM, temperature=1.7, top_k=30, top_p=0.9, min_p=0.02, seed=6),
    rules(RANDOM, repetition_penalty=1.4, seed=7),
    rules(presence_penalty=1.5, frequency_penalty=0.5),
    rules(logit_bias={4: 30.0}),
    rules(RANDOM, logit_bias={4: 3.0, 5: -2.0}, top_k=3, seed=8),
    rules(min_tokens=3, min_tokens_banned=[0, 1]),
    rules(RANDOM, logprobs=5, seed=9),
    rules(RANDOM, logprobs=0, frequency_penalty=-1.0, seed=10),
]


def test_a_row_draws_the_same_alone_and_among_any_others():
    logits = logits_of(len(MIXED))
    together = sample(MIXED, logits, output=[4, 9])
    assert together.failed == []
    by_row = {item.index: item for item in together.logprobs}
    for i, sampling in enumerate(MIXED):
        alone = sample([sampling], logits[i : i + 1], output=[4, 9])
        assert alone.tokens[0] == together.tokens[i], sampling
        for item in alone.logprobs:
            assert msgspec.structs.replace(item, index=i) == by_row[i]


@pytest.mark.parametrize(
    "poison",
    [
        pytest.param(lambda row: row.fill_(NAN), id="all-nan"),
        pytest.param(lambda row: row[70:71].fill_(NAN), id="one-nan"),
        pytest.param(lambda row: row[70:71].fill_(INFINITY), id="one-infinity"),
        pytest.param(lambda row: row.fill_(-INFINITY), id="nothing-left"),
    ],
)
@pytest.mark.parametrize("index", range(len(MIXED)))
def test_a_row_that_is_not_finite_fails_and_touches_no_other(index, poison):
    logits = logits_of(len(MIXED))
    expected = sample(MIXED, logits)
    poison(logits[index])
    drawn = sample(MIXED, logits)
    others = [i for i in range(len(MIXED)) if i != index]
    assert drawn.failed == [index]
    assert drawn.tokens[others].equal(expected.tokens[others])
    assert drawn.tokens[index] == 0
    assert drawn.logprobs == [item for item in expected.logprobs if item.index != index]


def test_a_logit_of_minus_infinity_is_a_token_that_is_not_drawn():
    logits = torch.full((300, VOCABULARY), -INFINITY)
    logits[:, [4, 50]] = 1.0
    drawn = sample([rules(RANDOM, seed=seed) for seed in range(300)], logits)
    assert drawn.failed == []
    assert set(drawn.tokens.tolist()) == {4, 50}


@pytest.mark.parametrize("base", [GREEDY, RANDOM], ids=["greedy", "random"])
def test_a_row_whose_every_token_is_banned_fails_alone(base):
    banned = rules(base, min_tokens=1, min_tokens_banned=list(range(VOCABULARY)))
    drawn = sample([base, banned, base], logits_of(3))
    assert drawn.failed == [1]
    assert drawn.tokens[[0, 2]].equal(sample([base, base], logits_of(3)[[0, 2]]).tokens)


def test_log_probabilities_are_those_of_the_plain_logits():
    """Before temperature, bias, penalties and filters, as the message documents."""
    logits = logits_of(3)
    each = [
        rules(RANDOM, logprobs=4, temperature=0.4, top_k=2, logit_bias={3: 5.0}, seed=11),
        GREEDY,
        rules(logprobs=0, repetition_penalty=1.5),
    ]
    drawn = sample(each, logits)
    expected = logits.log_softmax(-1)
    first, third = drawn.logprobs
    assert (first.index, third.index) == (0, 2)
    assert first.top_tokens == logits[0].topk(4).indices.tolist()
    assert first.top == pytest.approx(expected[0].topk(4).values.tolist(), abs=1e-6)
    assert first.chosen == pytest.approx(float(expected[0, drawn.tokens[0]]), abs=1e-6)
    assert (third.top_tokens, third.top) == ([], [])
    assert third.chosen == pytest.approx(float(expected[2, drawn.tokens[2]]), abs=1e-6)


def test_more_log_probabilities_than_tokens_are_all_of_them():
    drawn = sample([rules(logprobs=20)], logits_of(1, vocabulary=6))
    assert sorted(drawn.logprobs[0].top_tokens) == list(range(6))


def test_a_row_that_left_leaves_nothing_to_the_next_one():
    made = sampler_of(rules(RANDOM, frequency_penalty=2.0, logit_bias={4: 100.0}, logprobs=2))
    made.sample(logits_of(1), [0], [4])
    made.leave(0)
    made.join(join(0, GREEDY))
    drawn = made.sample(logits_of(1), [0], [4])
    assert drawn.tokens.tolist() == logits_of(1).argmax(-1).tolist()
    assert drawn.logprobs == []


def test_a_history_longer_than_its_first_room_is_kept():
    sampling = rules(presence_penalty=2.0)
    made = Sampler()
    made.join(join(0, sampling, prompt_tokens=1, history=[999]))
    # One of 300 tokens a little less likely than the last: each is drawn once, in order.
    logits = torch.full((1, 1000), -50.0)
    logits[0, :300] = -torch.arange(300) / 300
    tokens = [int(made.sample(logits.clone(), [0], [i + 1]).tokens[0]) for i in range(300)]
    assert tokens == list(range(300))

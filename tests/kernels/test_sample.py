import numpy as np
import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from weft.kernels.sample.philox import uniform
from weft.kernels.sample.reference import draw, min_p, penalise, top_k_top_p

INFINITY = float("inf")


def random_logits(rows, vocabulary, *, seed=0, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vocabulary, generator=generator) * spread


def column(*values):
    return torch.tensor(values, dtype=torch.float32)[:, None]


def noise(count, *, seed=1):
    zeros = np.zeros(count, dtype=np.int64)
    return torch.from_numpy(uniform(zeros + seed, zeros, np.arange(count, dtype=np.int64)))


def kept(logits):
    return logits > -INFINITY


@pytest.mark.parametrize("vocabulary", [2, 50, 300])
def test_frequencies_of_drawn_tokens_match_softmax(vocabulary):
    logits = random_logits(1, vocabulary, spread=1.0)
    count = 40_000
    drawn = draw(logits.expand(count, -1), noise(count))
    expected = logits.double().softmax(-1)[0].numpy() * count
    observed = np.bincount(drawn.numpy(), minlength=vocabulary)
    chi_square = ((observed - expected) ** 2 / expected).sum()
    freedom = vocabulary - 1
    # The 99.9 % quantile, by Wilson and Hilferty's approximation.
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3
    assert chi_square < limit


def test_tokens_at_minus_infinity_are_never_drawn():
    logits = torch.full((1, 64), -INFINITY)
    allowed = [0, 7, 40, 62]
    logits[0, allowed] = torch.tensor([1.0, -5.0, 2.0, 0.0])
    edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    drawn = draw(logits.expand(5002, -1), torch.cat((edges, noise(5000))))
    assert set(drawn.tolist()) == set(allowed)
    assert drawn[:2].tolist() == [0, 62]


def test_the_ends_of_the_unit_interval_draw_tokens_of_the_vocabulary():
    logits = random_logits(200, 2048)
    logits[:, :3] = logits[:, -3:] = -INFINITY
    for edge in (0.0, 1 - 2**-53):
        drawn = draw(logits, torch.full((200,), edge, dtype=torch.float64))
        assert kept(logits)[torch.arange(200), drawn].all()


def test_equal_logits_share_the_interval_in_the_order_of_their_ids():
    logits = torch.zeros(4, 4)
    points = torch.tensor([0.0, 0.25, 0.5, 0.99], dtype=torch.float64)
    assert draw(logits, points).tolist() == [0, 1, 2, 3]


def test_a_row_draws_the_same_token_alone_and_among_others():
    logits, points = random_logits(33, 517), noise(33)
    together = draw(logits, points)
    for i in range(33):
        assert draw(logits[i : i + 1], points[i : i + 1]) == together[i]


@pytest.mark.parametrize("k", [1, 2, 17, 99, 100])
def test_top_k_keeps_what_transformers_keeps(k):
    logits = random_logits(20, 100)
    expected = TopKLogitsWarper(k)(None, logits.clone())
    assert top_k_top_p(logits, column(k), column(1.0)).equal(expected)


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.99])
def test_top_p_keeps_what_transformers_keeps(p):
    logits = random_logits(20, 100)
    expected = TopPLogitsWarper(p)(None, logits.clone())
    assert top_k_top_p(logits, column(100), column(p)).equal(expected)


def test_top_p_counts_what_top_k_has_kept():
    logits = random_logits(50, 100, spread=1.0)
    expected = TopPLogitsWarper(0.6)(None, TopKLogitsWarper(12)(None, logits.clone()))
    other_order = TopKLogitsWarper(12)(None, TopPLogitsWarper(0.6)(None, logits.clone()))
    assert not expected.equal(other_order)  # else the order would go untested
    assert top_k_top_p(logits, column(12), column(0.6)).equal(expected)


@pytest.mark.parametrize("least", [0.01, 0.2, 0.999])
def test_min_p_keeps_what_transformers_keeps(least):
    logits = random_logits(20, 100)
    expected = MinPLogitsWarper(least)(None, logits.clone())
    assert min_p(logits, column(least)).equal(expected)


def test_min_p_of_one_keeps_the_most_likely_tokens_only():
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.9]])
    assert kept(min_p(logits, column(1.0))).tolist() == [[False, True, True, False]]


def test_equal_tokens_at_the_edge_of_a_cut_are_kept_in_the_order_of_their_ids():
    logits = torch.tensor([[0.0, 1.0, 1.0, 1.0, 1.0]])
    assert kept(top_k_top_p(logits, column(2), column(1.0))).tolist() == [[0, 1, 1, 0, 0]]
    logits = torch.zeros(1, 8)
    assert kept(top_k_top_p(logits, column(8), column(0.5))).tolist() == [[1] * 4 + [0] * 4]


def test_one_token_stays_whatever_is_cut():
    logits = random_logits(5, 100)
    cut = top_k_top_p(min_p(logits, column(1.0)), column(1), column(1e-9))
    assert kept(cut).sum(-1).tolist() == [1] * 5
    assert cut.argmax(-1).equal(logits.argmax(-1))


def test_filters_treat_each_row_by_its_own_numbers():
    logits = random_logits(3, 60)
    k, p, least = column(5, 60, 20), column(1.0, 0.3, 0.9), column(0.1, 1e-3, 0.5)
    cut = top_k_top_p(min_p(logits, least), k, p)
    for i in range(3):
        own = slice(i, i + 1)
        assert cut[own].equal(top_k_top_p(min_p(logits[own], least[own]), k[own], p[own]))


def penalised(logits, prompt, output, *, row=0, penalties):
    repetition, presence, frequency = penalties
    tokens = sorted({*prompt, *output})
    ones = torch.ones(len(tokens))
    result = logits.clone()
    penalise(
        result,
        torch.full((len(tokens),), row),
        torch.tensor(tokens),
        torch.tensor([output.count(token) for token in tokens], dtype=torch.float32),
        ones * repetition,
        ones * presence,
        ones * frequency,
    )
    return result


@pytest.mark.parametrize("repetition", [0.5, 1.3, 10.0])
def test_repetition_is_penalised_as_in_transformers(repetition):
    logits = random_logits(1, 50)
    logits[0, 9] = 0.0
    prompt, output = [3, 3, 9, 20], [41, 20, 41]
    processor = RepetitionPenaltyLogitsProcessor(repetition)
    expected = processor(torch.tensor([prompt + output]), logits.clone())
    assert penalised(logits, prompt, output, penalties=(repetition, 0, 0)).equal(expected)


@pytest.mark.parametrize(("presence", "frequency"), [(0.7, 0.0), (0.0, 0.4), (-1.5, 2.0)])
def test_presence_and_frequency_follow_the_formula_of_openai(presence, frequency):
    logits = random_logits(1, 50)
    prompt, output = [3, 9, 9, 20], [41, 20, 41, 41]
    expected = logits.clone()
    for token in range(50):
        count = output.count(token)  # of the output only
        expected[0, token] -= count * frequency + (count > 0) * presence
    actual = penalised(logits, prompt, output, penalties=(1, presence, frequency))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


def test_penalties_touch_their_own_row_alone():
    logits = random_logits(3, 50)
    actual = penalised(logits, [3], [4, 4], row=1, penalties=(2, 1, 1))
    assert actual[[0, 2]].equal(logits[[0, 2]])
    alone = penalised(logits[1:2], [3], [4, 4], penalties=(2, 1, 1))
    assert actual[1:2].equal(alone)


def test_a_banned_token_stays_banned_when_it_is_penalised():
    logits = random_logits(1, 8)
    logits[0, 4] = -INFINITY
    actual = penalised(logits, [4], [4], penalties=(0.5, -2, -2))
    assert actual[0, 4] == -INFINITY

"""The most likely token of each row."""

import pytest
import torch

from weft.kernels.sample import cpu

NAN, INF = float("nan"), float("inf")


@pytest.fixture(params=["native", "torch"])
def highest(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(cpu, "library", lambda: None)
    elif cpu.library() is None:
        pytest.skip("no C compiler")
    return cpu.highest


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 400, 2048, 32001])
@pytest.mark.parametrize("rows", [1, 9])
def test_it_is_what_torch_finds(highest, rows, tokens):
    torch.manual_seed(tokens)
    logits = torch.randn(rows, tokens)
    values, found = highest(logits)
    expected = logits.max(dim=-1)
    assert values.equal(expected.values)
    assert found.equal(expected.indices)


@pytest.mark.parametrize("places", [(0, 1), (3, 19), (16, 33), (35, 39), (5, 37)])
def test_of_equal_ones_the_first_is_taken(highest, places):
    logits = torch.zeros(2, 40)
    logits[1, list(places)] = 7.0
    assert highest(logits)[1].tolist() == [0, places[0]]


@pytest.mark.parametrize("place", [0, 21, 39])
@pytest.mark.parametrize("tokens", [40, 32])
def test_a_row_with_nan_gives_nan_and_no_other_does(highest, place, tokens):
    logits = torch.randn(3, tokens)
    logits[1, place % tokens] = NAN
    assert highest(logits)[0].isnan().tolist() == [False, True, False]


def test_tokens_that_are_banned_are_passed_over(highest):
    logits = torch.full((3, 40), -INF)
    logits[0, 38] = -1e30
    logits[1, 7] = INF
    values, found = highest(logits)
    assert found[:2].tolist() == [38, 7]
    assert values.tolist() == [torch.tensor(-1e30).item(), INF, -INF]


def test_rows_may_lie_apart(highest):
    logits = torch.randn(5, 90)
    assert highest(logits[:, 10:70])[1].equal(logits[:, 10:70].argmax(dim=-1))

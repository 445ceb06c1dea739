"""Sampling in Triton against the reference: interpreted, or on a GPU if there is one."""

import numpy as np
import pytest
import torch

from weft.kernels.sample import reference
from weft.kernels.sample.philox import uniform

pytest.importorskip("triton")
import triton
import triton.language as tl

from weft.kernels.sample import triton as device_sampling
from weft.kernels.sample.triton_kernels import _draw, noise

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cuda":
    pytestmark = pytest.mark.gpu
INFINITY = float("inf")
NAN = float("nan")


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Let small vocabularies take several tiles, and searches read rows again."""
    monkeypatch.setattr(device_sampling, "BLOCK", 128)
    monkeypatch.setattr(device_sampling, "CHOSEN", 64)


@pytest.fixture(params=[None, (256, 32)], ids=["as-it-is", "tiny-tiles"])
def tiles(request, monkeypatch, small_tiles):
    """The tiles of the wrapper, or tinier ones."""
    if request.param is None:
        monkeypatch.undo()
    else:
        monkeypatch.setattr(device_sampling, "BLOCK", request.param[0])
        monkeypatch.setattr(device_sampling, "CHOSEN", request.param[1])


def random_logits(rows, vocabulary, *, seed=0, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vocabulary, generator=generator) * spread


def rules(rows, *, temperature=1.0, min_p=0.0, k=0, p=1.0, seed=1):
    """The other arguments of ``sample``; numbers hold for every row, or are one for each."""

    def column(values, dtype):
        return torch.as_tensor(values, dtype=dtype).expand(rows).contiguous()

    return [
        column(temperature, torch.float32),
        column(min_p, torch.float32),
        column(k, torch.int64),
        column(p, torch.float32),
        column(seed, torch.int64),
        torch.arange(rows) % 3,
        torch.arange(rows) * 7,
    ]


def sampled(logits, own):
    drawn = device_sampling.sample(logits.to(DEVICE), *(x.to(DEVICE) for x in own))
    return drawn.tokens.cpu(), drawn.finite.cpu()


def drawn(logits, own):
    tokens, finite = sampled(logits, own)
    assert finite.all()
    return tokens


def expected(logits, own):
    """What the sampler makes of the reference's functions."""
    temperature, min_p, k, p, *streams = own
    scaled = (logits - logits.amax(-1, keepdim=True)) / temperature[:, None]
    scaled = reference.min_p(scaled, min_p[:, None])
    k = torch.where(k > 0, k, logits.shape[1])
    scaled = reference.top_k_top_p(scaled, k[:, None], p[:, None])
    return reference.draw(scaled, torch.from_numpy(uniform(*(x.numpy() for x in streams))))


@triton.jit
def _noise_kernel(out_ptr, seeds_ptr, choices_ptr, positions_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    bits = noise(tl.load(seeds_ptr + i), tl.load(choices_ptr + i), tl.load(positions_ptr + i))
    tl.store(out_ptr + i, bits.to(tl.int64))


def test_noise_is_that_of_philox_bit_for_bit():
    count = 256
    rng = np.random.default_rng(0)
    seeds, choices, positions = rng.integers(0, 2**63 - 1, (3, count))
    choices, positions = choices % 128, positions % 2**31
    seeds[:3], choices[:3], positions[:3] = [0, 2**63 - 1, 2**32], [0, 127, 0], [0, 2**31, 1]
    out = torch.empty(count, dtype=torch.int64, device=DEVICE)
    arrays = (torch.from_numpy(x).to(DEVICE) for x in (seeds, choices, positions))
    _noise_kernel[(1,)](out, *arrays, BLOCK=count)
    assert (out.cpu().numpy() / 2.0**53).tolist() == uniform(seeds, choices, positions).tolist()


@triton.jit
def _draw_kernel(out_ptr, logits_ptr, TARGET: tl.constexpr, SIZE: tl.constexpr):
    edge = tl.full((), 0x41F40000, tl.int32)
    tl.store(out_ptr, _draw(logits_ptr, 0.0, 1.0, edge, 0, TARGET, SIZE, 4))


@pytest.mark.parametrize(
    ("target", "token"), [(0, 2), (2**44 - 1, 2), (2**44, 6), (2**45 - 1, 6), (2**45, 7)]
)
def test_a_target_up_to_a_tokens_share_draws_that_token(target, token):
    """Also at the ends, where no weight is."""
    logits = torch.tensor([-INFINITY, -40.0, 0.0, -INFINITY, -31.0, -INFINITY, 0.0], device=DEVICE)
    out = torch.empty(1, dtype=torch.int32, device=DEVICE)
    _draw_kernel[(1,)](out, logits, TARGET=target, SIZE=7)
    assert out.item() == token


RULES = {
    "plain": {},
    "temperature": {"temperature": 0.3},
    "hot": {"temperature": 30.0},
    "top-k": {"k": 7},
    "top-p": {"p": 0.8},
    "min-p": {"min_p": 0.05},
    "all": {"temperature": 1.5, "min_p": 0.01, "k": 20, "p": 0.9},
    "no-choice": {"k": 1, "p": 1e-6, "min_p": 1.0},
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_tokens_are_those_of_the_reference(rule):
    logits = random_logits(3, 150)
    own = rules(3, **rule)
    assert drawn(logits, own).equal(expected(logits, own))


def test_tokens_are_those_of_the_reference_in_tiles_as_they_are(monkeypatch):
    monkeypatch.undo()
    logits = random_logits(2, 5000)
    own = rules(2, **RULES["all"])
    assert drawn(logits, own).equal(expected(logits, own))


@pytest.mark.slow
@pytest.mark.parametrize("vocabulary", [2, 63, 64, 65, 1000, 5000])
@pytest.mark.parametrize("spread", [0.001, 1.0, 3.0, 12.0])
def test_tokens_are_those_of_the_reference_for_any_rules(tiles, spread, vocabulary):
    rows = 20
    generator = torch.Generator().manual_seed(vocabulary)

    def either(values, other):
        """Half of the rows have a rule."""
        return torch.where(torch.rand(rows, generator=generator) < 0.5, values, other)

    logits = random_logits(rows, vocabulary, spread=spread)
    logits[::4] = logits[::4].round()  # ties
    own = rules(
        rows,
        temperature=torch.rand(rows, generator=generator) * 2 + 0.05,
        min_p=either(torch.rand(rows, generator=generator), torch.tensor(0.0)),
        k=either(torch.randint(1, vocabulary + 2, (rows,), generator=generator), torch.tensor(0)),
        p=either(torch.rand(rows, generator=generator) + 1e-6, torch.tensor(1.0)).clamp(max=1),
        seed=torch.randint(0, 2**62, (rows,), generator=generator),
    )
    assert drawn(logits, own).equal(expected(logits, own))


@pytest.mark.parametrize("rule", [{"k": 5}, {"p": 0.045}, {"k": 90, "p": 0.045}], ids=str)
def test_equal_tokens_are_kept_in_the_order_of_their_ids(rule):
    logits = torch.zeros(2, 100)
    own = rules(2, seed=torch.arange(2), **rule)
    tokens = drawn(logits, own)
    assert set(tokens.tolist()) <= set(range(5))
    assert tokens.equal(expected(logits, own))


def test_each_row_goes_by_its_own_rules():
    logits = random_logits(5, 150)
    own = rules(
        5,
        temperature=torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0]),
        k=torch.tensor([0, 3, 0, 50, 2]),
        p=torch.tensor([0.7, 1.0, 1.0, 0.9, 0.5]),
        seed=torch.arange(5),
    )
    together = drawn(logits, own)
    for i in range(5):
        row = slice(i, i + 1)
        assert drawn(logits[row], [x[row] for x in own]).equal(together[row])


def test_without_temperature_the_first_of_the_likeliest_tokens_is_chosen():
    logits = random_logits(4, 200)
    logits[1, [70, 130]] = 50.0
    logits[2, [199]] = 50.0
    assert drawn(logits, rules(4, temperature=0.0)).equal(logits.argmax(-1))


def test_tokens_at_minus_infinity_are_never_drawn():
    logits = torch.full((12, 99), -INFINITY)
    logits[:, [3, 70, 98]] = torch.tensor([1.0, 2.0, 1.5])
    tokens = drawn(logits, rules(12, seed=torch.arange(12), k=50, p=0.99))
    assert set(tokens.tolist()) == {3, 70, 98}


def test_rows_without_a_number_to_choose_fail_alone():
    logits = random_logits(5, 130)
    own = rules(5, temperature=torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0]))
    healthy = drawn(logits, own)
    logits[0, 100] = NAN
    logits[1] = -INFINITY
    logits[2, 5] = NAN
    logits[4, 6] = INFINITY
    tokens, finite = sampled(logits, own)
    assert finite.tolist() == [False, False, False, True, False]
    assert tokens.tolist() == [0, 0, 0, int(healthy[3]), 0]


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_temperature_near_zero_draws_the_likeliest():
    logits = random_logits(3, 50)
    assert drawn(logits, rules(3, temperature=1e-45)).equal(logits.argmax(-1))


def test_logits_are_left_as_they_are_and_may_be_strided():
    wide = random_logits(3, 120)
    own = rules(3, k=9)
    before = wide.clone()
    part = drawn(wide[:, :100], own)
    assert part.equal(drawn(wide[:, :100].contiguous(), own))
    assert wide.equal(before)


def test_no_rows_are_no_tokens():
    assert drawn(torch.empty(0, 10), rules(0)).shape == (0,)

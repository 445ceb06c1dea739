import numpy as np
import pytest

from weft.kernels.sample.philox import philox, uniform

# philox4x32-10 in the known-answer file of Random123, the authors' own implementation.
KNOWN = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]
COUNT = 50_000


def words(text):
    return tuple(np.array([int(word, 16)], dtype=np.uint64) for word in text.split())


def draws(*, seeds=0, choices=0, positions=0, count=COUNT):
    wide = [
        np.broadcast_to(np.array(x, dtype=np.int64), count) for x in (seeds, choices, positions)
    ]
    return uniform(*wide)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers_of_the_authors(counter, key, expected):
    assert philox(words(counter), words(key)) == list(words(expected))


@pytest.mark.parametrize(
    "inputs",
    [
        pytest.param({"positions": np.arange(COUNT)}, id="positions"),
        pytest.param({"seeds": np.arange(COUNT)}, id="seeds"),
        pytest.param({"seeds": np.arange(COUNT) << 32}, id="high-bits-of-seeds"),
        pytest.param({"choices": np.arange(COUNT)}, id="choices"),
    ],
)
def test_numbers_are_uniform_whichever_input_counts(inputs):
    values = np.sort(draws(**inputs))
    assert values[0] >= 0
    assert values[-1] < 1
    steps = np.arange(COUNT + 1) / COUNT
    distance = max((steps[1:] - values).max(), (values - steps[:-1]).max())
    assert distance < 1.95 / COUNT**0.5  # Kolmogorov-Smirnov at 0.1 %
    assert len(np.unique(values)) == COUNT


@pytest.mark.parametrize("other", [{"seeds": 8}, {"choices": 1}, {"seeds": 7 + 2**32}], ids=str)
def test_neighbouring_streams_are_not_correlated(other):
    positions = np.arange(COUNT)
    one = draws(positions=positions, seeds=7)
    two = draws(positions=positions, **({"seeds": 7} | other))
    shifted = draws(positions=positions + 1, seeds=7)
    for stream in (two, shifted):
        assert abs(np.corrcoef(one, stream)[0, 1]) < 4 / COUNT**0.5


def test_a_number_depends_on_its_own_inputs_alone():
    rng = np.random.default_rng(0)
    seeds, choices, positions = rng.integers(0, 2**63 - 1, (3, 100))
    choices, positions = choices % 128, positions % 100_000
    together = uniform(seeds, choices, positions)
    for i in range(100):
        assert uniform(*(x[i : i + 1] for x in (seeds, choices, positions))) == together[i]


def test_the_largest_seed_and_position_are_taken():
    [value] = draws(seeds=2**63 - 1, choices=127, positions=2**31, count=1)
    assert 0 <= value < 1

"""Regular expressions in configurations: PEFT's meaning, in bounded time."""

import random
import re

import pytest
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from tests.actors.adapters.folders import build, folder
from weft.actors.adapters import peft_config
from weft.actors.adapters.base import MODULES
from weft.actors.adapters.errors import BadAdapter

NAMES = [
    f"{prefix}layers.{layer}.{module}"
    for prefix in ("model.", "")
    for layer in (0, 1, 10, 31)
    for module in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
]

# What unsloth writes.
UNSLOTH = (
    r"(?:.*?(?:vision|image|visual|patch|language|text).*?(?:self_attn|attention|attn|mlp|"
    r"feed_forward|ffn|dense).*?(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj).*?)|"
    r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)\."
    r"(?:(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)))"
)

COMMON = [
    UNSLOTH,
    r".*\.self_attn\.(q|k|v|o)_proj",
    r".*layers\.(" + "|".join(map(str, range(31))) + r")\.mlp\.(gate|up|down)_proj",
    r"(?!.*mlp).*_proj",
    r".*(?<!down)_proj",
    r"model\.layers\.\d+\.mlp\.up_proj",
    r"(model\.)?layers\.1\..*",
    r"[^.]*\.?layers.[1-3]{2}.+?_proj",
]

# Each needs time exponential in the name's length, or a high power of it.
ENDLESS = {
    "alternatives": "(?:.|.)" * 30 + "[^j]",
    "repeated-group": "(.|..|...)*[^a-z_.0-9]",
    "counted-group": "(.{1,9}){1,9}[^j]",
    "lazy-repeats": ".*?" * 20 + "[^j]",
    "in-lookahead": "(?=(.|..|...)*[^a-z_.0-9]$).*",
}


def parse(**fields):
    return peft_config.parse(folder({"r": 64, **fields})["adapter_config.json"])


@pytest.mark.parametrize("pattern", COMMON)
def test_common_patterns_cover_what_they_cover_for_peft(pattern):
    config = parse(target_modules=pattern)
    found = [name for name in NAMES if config.targets(name)]
    assert found == [name for name in NAMES if re.fullmatch(pattern, name)]
    assert 0 < len(found) < len(NAMES)


@pytest.mark.parametrize(
    "pattern",
    [
        UNSLOTH,
        r"(?i).*Q_PROJ|.*down_proj",
        r".*\.(0|1)\..*proj",
        r"^(?!.*vision).*_proj$",
        "model.*",
    ],
)
def test_patterns_that_people_write_are_taken(pattern):
    assert build(folder({"target_modules": pattern})).digest == build(folder()).digest


@pytest.mark.parametrize("pattern", ENDLESS.values(), ids=ENDLESS)
def test_a_pattern_that_would_take_for_ever_is_given_up(pattern):
    with pytest.raises(BadAdapter, match=r"target_modules: .* takes too long to match; list the"):
        build(folder({"target_modules": pattern}))


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_so_is_one_of_many_patterns(field):
    patterns = {"k_proj": 4, ENDLESS["repeated-group"]: 4}
    with pytest.raises(BadAdapter, match=f"{field}: .* takes too long to match; list the modules"):
        build(folder({field: patterns}))


def test_a_match_may_take_as_long_as_a_busy_machine_makes_of_a_short_one():
    """This one needs 5 to 10 milliseconds of processor time to find that it does not match."""
    config = parse(rank_pattern={"(?:.?){200}[^j]": 4})
    assert config.rank("model.layers.10.self_attn.q_proj") == 64


def test_a_rank_for_each_module_of_a_large_model_is_taken():
    names = [
        f"model.layers.{i}.{block}.{name}" for i in range(126) for name, block in MODULES.items()
    ]
    ranks = dict.fromkeys(reversed(names), 4)
    config = {
        "r": 9,
        "lora_alpha": 18,
        "rank_pattern": ranks,
        "alpha_pattern": dict.fromkeys(ranks, 8),
    }
    assert build(folder(config)).digest == build(folder()).digest


PIECES = [
    "q_proj", "o_proj", "mlp.", "self_attn.", "layers.", "model.", ".*", r"\d+", r"1", "(0|1)",
    "^", "$", "up|down", ".", "[a-z]+", "(?:q|o)", "_proj", "31", r"\.", "?",
]  # fmt: skip


def test_ranks_and_alphas_are_looked_up_as_peft_does():
    rng = random.Random(0)
    matched = 0
    for _ in range(400):
        ranks = {"".join(rng.choices(PIECES, k=rng.randint(1, 4))): i + 1 for i in range(3)}
        alphas = {pattern: rank * 3.0 for pattern, rank in reversed(ranks.items())}
        try:
            config = parse(rank_pattern=ranks, alpha_pattern=alphas)
        except BadAdapter:
            continue  # not an expression
        for name in NAMES:
            rank = ranks.get(get_pattern_key(list(ranks), name), 64)
            alpha = alphas.get(get_pattern_key(list(alphas), name), 8.0)
            assert (config.rank(name), config.scale(name)) == (rank, alpha / rank), (ranks, name)
            matched += rank != 64
    assert matched > 1000


@pytest.mark.parametrize(
    "pattern",
    ["(?i)q_proj", "(?x)q_proj #", r"(a)(b)\2", "(?P<a>q)|(?P<a>k)", "(?<\n", "[\x02-\x01]"],
    ids=ascii,
)
def test_what_peft_could_not_read_itself_is_refused_in_words_that_can_be_logged(pattern):
    with pytest.raises(BadAdapter, match=r"^rank_pattern: .*list the modules by name") as caught:
        build(folder({"rank_pattern": {pattern: 4}}))
    assert str(caught.value).isprintable()


def test_a_list_covers_whole_names_and_their_ends():
    config = parse(target_modules=["q_proj", "mlp.up_proj", "model.layers.1.self_attn.o_proj"])
    covered = {name for name in NAMES if config.targets(name)}
    assert covered == {
        name
        for name in NAMES
        if name.endswith((".q_proj", ".mlp.up_proj")) or name == "model.layers.1.self_attn.o_proj"
    }
    assert not parse(target_modules=["proj", "_proj", ".q_proj", ""]).targets(NAMES[0])


def test_layers_and_excluded_modules_are_chosen_as_peft_does():
    rng = random.Random(0)
    words = ["q_proj", "mlp.up_proj", "model.layers.1.self_attn.o_proj", "down_proj", "proj"]
    layers = [0, 1, [1], [0, 31], [10], []]
    patterns = [None, "layers", ["h", "layers"], "model.layers", "l.*", r"h|layers", []]
    excluded = [None, ["up_proj"], r".*\.1\..*", "q_proj", ["layers.10.mlp.down_proj"]]
    covered = left = 0
    for _ in range(500):
        fields = {
            "target_modules": rng.sample(words, 3),
            "layers_to_transform": rng.choice(layers),
            "layers_pattern": rng.choice(patterns),
            "exclude_modules": rng.choice(excluded),
        }
        ours, theirs = parse(**fields), LoraConfig(**fields)
        for name in NAMES:
            expected = bool(check_target_module_exists(theirs, name))
            assert ours.targets(name) == expected, (name, fields)
            covered += expected
            left += not expected
    assert covered > 1000
    assert left > 1000

import math

import pytest

from weft.actors.tokenizer.composition import Compositions
from weft.actors.tokenizer.names import Names
from weft.actors.tokenizer.refusal import Refusal
from weft.runtime.config import Config
from weft.runtime.messages import AdapterEntry, AdapterUse, Lora, ModelEntry, Submit

ENTRIES = [
    AdapterEntry("sql", "/sql", "d3", 8, 5),
    AdapterEntry("formal", "/formal", "d1", 16, 5),
    AdapterEntry("math", "/math", "d2", 4, 5),
    AdapterEntry("alias", "/sql", "d3", 8, 5),
    AdapterEntry("sql+math", "/both", "d4", 64, 5),
    AdapterEntry("v:0.5", "/v", "d5", 8, 5),
    AdapterEntry("dora", "/dora", "d6", 8, 5, is_additive=False),
    AdapterEntry("act", "/act", "d7", 8, 5, invocation_tokens=[7, 8]),
    AdapterEntry("bad", "/bad", "", 0, 5, "use_qalora: True is not supported"),
    AdapterEntry("cold", "/cold", "", 0, 5),
    AdapterEntry("colder", "/colder", "", 0, 5),
]


@pytest.fixture
def compositions():
    names = Names(ModelEntry("base", "/m", None, None, None, 1, 64))
    names.update(ENTRIES, [])
    return Compositions(names, Config(model="/m/base", max_loras_per_request=3))


def submit(model=None, lora=None):
    """``lora`` are names, or pairs of names and scales."""
    if lora is not None:
        pairs = [(each, 1.0) if isinstance(each, str) else each for each in lora]
        lora = [Lora(name=name, scale=scale) for name, scale in pairs]
    return Submit("a", model, prompt="x", lora=lora)


def resolved(compositions, model=None, lora=None):
    """Digests and scales of a request's adapters."""
    asked = submit(model, lora)
    compositions.check(asked)
    return [(use.digest, use.scale) for use in compositions.resolve(asked).uses]


def refusal(compositions, model=None, lora=None):
    with pytest.raises(Refusal) as caught:
        resolved(compositions, model, lora)
    return caught.value


@pytest.mark.parametrize(
    ("model", "uses"),
    [
        (None, []),
        ("base", []),
        ("sql", [("d3", 1.0)]),
        ("sql+formal", [("d1", 1.0), ("d3", 1.0)]),
        ("formal+sql", [("d1", 1.0), ("d3", 1.0)]),
        ("sql:0.5", [("d3", 0.5)]),
        ("sql:-0.25+formal:2+math", [("d1", 2.0), ("d2", 1.0), ("d3", -0.25)]),
        ("sql:0+math", [("d2", 1.0)]),
        ("sql:0", []),
    ],
)
def test_model_may_name_several_adapters_with_scales(compositions, model, uses):
    assert resolved(compositions, model) == uses


def test_a_name_wins_over_what_it_could_be_read_as(compositions):
    assert resolved(compositions, "sql+math") == [("d4", 1.0)]
    assert resolved(compositions, "v:0.5") == [("d5", 1.0)]
    assert resolved(compositions, "v:0.5:2+math") == [("d2", 1.0), ("d5", 2.0)]


def test_a_list_names_adapters_with_any_characters(compositions):
    assert resolved(compositions, lora=["sql+math", ("sql", 0.5)]) == [("d3", 0.5), ("d4", 1.0)]
    assert resolved(compositions, "base", lora=["sql"]) == [("d3", 1.0)]
    assert resolved(compositions, lora=[]) == []
    assert resolved(compositions, lora=[("sql", 0.0), ("dora", 1.0)]) == [("d6", 1.0)]


@pytest.mark.parametrize(
    ("options", "code", "param", "text"),
    [
        ({"model": "sql+gone"}, "model_not_found", "model", "'gone'"),
        ({"lora": ["sql", "sqk"]}, "model_not_found", "lora", "did you mean 'sql'"),
        ({"model": "gone:0.5"}, "model_not_found", "model", "'gone'"),
        ({"model": "sql:half"}, "model_not_found", "model", "'sql:half'"),
        ({"model": "sql+"}, "model_not_found", "model", "''"),
        ({"model": "bad+sql"}, "adapter_refused", "model", "use_qalora"),
        ({"model": "sql+sql"}, "invalid_value", "model", "the same adapter"),
        ({"lora": ["sql", ("sql", 0.5)]}, "invalid_value", "lora", "the same adapter"),
        ({"lora": ["sql", "alias"]}, "invalid_value", "lora", "'sql' and 'alias' are the same"),
        ({"model": "base+sql"}, "invalid_value", "model", "'base' is the base"),
        ({"lora": ["base"]}, "invalid_value", "lora", "'base' is the base"),
        ({"model": "sql", "lora": []}, "invalid_value", "model", "lora names the adapters"),
        ({"model": "a+b+c+d"}, "invalid_value", "model", "may have 3 (max_loras_per_request)"),
        ({"lora": ["sql"] * 4}, "invalid_value", "lora", "may have 3 (max_loras_per_request)"),
        ({"lora": [("sql", math.nan)]}, "invalid_value", "lora", "no scale"),
        ({"lora": [("sql", math.inf)]}, "invalid_value", "lora", "no scale"),
        ({"lora": [("sql", -1001.0)]}, "invalid_value", "lora", "within 1000 of 0"),
        ({"model": "sql:1001"}, "invalid_value", "model", "within 1000 of 0"),
        ({"model": "dora+sql"}, "invalid_value", "model", "'dora' rescales or replaces"),
        ({"model": "act+sql"}, "invalid_value", "model", "'act' acts from its invocation on"),
        ({"lora": [("dora", 0.5)]}, "invalid_value", "lora", "'dora' rescales or replaces"),
    ],
    ids=str,
)
def test_what_cannot_be_added_up_is_refused_by_name(compositions, options, code, param, text):
    refused = refusal(compositions, **options)
    assert (refused.code, refused.param) == (code, param)
    assert text in refused.message


def test_no_more_are_taken_than_fit_into_a_batch(compositions):
    few = Config(model="/m/base", max_loras_per_request=3, max_loras_per_batch=2)
    refused = refusal(Compositions(compositions._names, few), "sql+formal+math")
    assert "may have 2 (max_loras_per_batch)" in refused.message


def test_names_that_nobody_has_asked_for_are_read_one_after_the_other(compositions):
    asked = submit("sql+cold+colder")
    assert compositions.unread(asked) == "cold"
    compositions._names.update([AdapterEntry("cold", "/cold", "d8", 8, 5)], [])
    assert compositions.unread(asked) == "colder"
    compositions._names.update([], ["colder"])
    assert compositions.unread(asked) is None
    assert refusal(compositions, "sql+cold+colder").code == "model_not_found"


def test_a_composition_knows_its_largest_rank_and_whose_share_it_is(compositions):
    one = compositions.resolve(submit("sql:0.5+formal"))
    assert (one.rank, one.name, one.tenant) == (16, "sql:0.5+formal", "formal+sql")
    other = compositions.resolve(submit(lora=["formal", ("sql", 0.25), ("math", 0.0)]))
    assert (other.rank, other.name, other.tenant) == (16, "formal+sql:0.25+math:0", "formal+sql")
    base = compositions.resolve(submit())
    assert (base.rank, base.name, base.tenant) == (0, "base", "base")


def test_an_activated_adapter_is_used_alone_with_any_scale(compositions):
    one = compositions.resolve(submit("act:0.5"))
    assert (one.uses, one.invocation_tokens) == ([AdapterUse("d7", 0.5, "act")], [7, 8])
    left_out = compositions.resolve(submit("act:0+sql"))
    assert ([use.digest for use in left_out.uses], left_out.invocation_tokens) == (["d3"], [])

"""What the store makes of embeddings, heads and norms that an adapter has of its own."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.numpy import load, save, save_file

from tests.actors.adapters.folders import CONFIG, tensors
from weft.actors.adapters import building, peft_config
from weft.actors.adapters.base import ADDED_TOKENS_MAX, BaseShapes
from weft.actors.adapters.errors import BadAdapter
from weft.actors.adapters.safetensors import parse

VOCABULARY, HIDDEN, LAYERS = 300, 8, 2
MODEL = "base_model.model.model"
EMBEDDING, HEAD = f"{MODEL}.embed_tokens", "base_model.model.lm_head"
DELTA = "token_adapter.trainable_tokens_delta"
WHOLE = {"modules_to_save": ["embed_tokens", "lm_head"]}
TARGETS = CONFIG["target_modules"]


def matrix(seed, rows=VOCABULARY):
    return np.random.default_rng(seed).standard_normal((rows, HIDDEN), np.float32)


def changed(seed, *ids):
    """A copy of a matrix in which these rows are others."""
    copy = matrix(seed)
    copy[list(ids)] += 1
    return copy


def shapes(folder, **more):
    fields = {
        "num_hidden_layers": LAYERS, "hidden_size": HIDDEN, "intermediate_size": 12,
        "num_attention_heads": 2, "vocab_size": VOCABULARY, "folder": str(folder),
    }  # fmt: skip
    return BaseShapes(**fields | more)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base whose embedding and head are matrices 0 and 1."""
    folder = tmp_path_factory.mktemp("base")
    weights = {"model.embed_tokens.weight": matrix(0), "lm_head.weight": matrix(1)}
    save_file(weights, folder / "model.safetensors")
    return shapes(folder)


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tied")
    save_file({"model.embed_tokens.weight": matrix(0)}, folder / "model.safetensors")
    return shapes(folder, tie_word_embeddings=True)


def build(base, own, *, mib=1, **config):
    parsed = peft_config.parse(json.dumps(CONFIG | config).encode())
    found = parse(own if isinstance(own, bytes) else save(tensors() | own))
    return building.build(parsed, found, base, rank_max=8, whole_bytes_max=mib * 2**20)


def rows(made, module):
    """The ids and rows that a file of the store has of a matrix."""
    content = load(b"".join(made.file()))
    if f"{module}.ids" not in content:
        return [], None
    return content[f"{module}.ids"].tolist(), content[f"{module}.rows"]


def lora(module, rank=4, *, tokens=VOCABULARY):
    """LoRA of an embedding or a head, by PEFT's names."""
    a, b = np.ones((rank, HIDDEN), np.float32), np.ones((tokens, rank), np.float32)
    if module == HEAD:
        return {f"{HEAD}.lora_A.weight": a, f"{HEAD}.lora_B.weight": b}
    # It is one matrix the other way round.
    sides = b.T.copy(), a.T.copy()
    return {f"{module}.lora_embedding_{side}": own for side, own in zip("AB", sides, strict=True)}


def test_of_whole_matrices_the_rows_are_kept_that_are_not_the_bases(base):
    own = {f"{EMBEDDING}.weight": changed(0, 7, 290), f"{HEAD}.weight": changed(1, 0)}
    made = build(base, own, **WHOLE)
    ids, values = rows(made, "embed_tokens")
    assert ids == [7, 290]
    assert (values == changed(0, 7, 290)[ids]).all()
    assert rows(made, "lm_head")[0] == [0]
    assert (made.tokens_added, made.is_additive) == (0, False)


def test_nothing_is_kept_of_copies_of_the_bases_own(base):
    """PEFT saves them beside the LoRA of an embedding, whatever they are."""
    own = lora(EMBEDDING) | lora(HEAD)
    copies = {f"{EMBEDDING}.base_layer.weight": matrix(0), f"{HEAD}.base_layer.weight": matrix(1)}
    targets = {"target_modules": [*TARGETS, "embed_tokens", "lm_head"]}
    assert build(base, own | copies, **targets) == build(base, own, **targets)
    assert build(base, own, **targets).is_additive


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_numbers_are_compared_whatever_their_types(tmp_path, dtype):
    values = torch.from_numpy(matrix(0)).to(dtype)
    folder = tmp_path / "base"
    folder.mkdir()
    of_base = {"embed_tokens.weight": values + 1, "lm_head.weight": values}
    safetensors.torch.save_file(of_base, folder / "model-1.safetensors")
    index = {"weight_map": dict.fromkeys(of_base, "model-1.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    own = values.float().numpy().copy()
    own[5] *= 2
    made = build(shapes(folder), {f"{HEAD}.weight": own}, modules_to_save=["lm_head"])
    assert rows(made, "lm_head")[0] == [5]


def test_rows_beyond_the_bases_are_tokens_that_were_added(base):
    grown = [np.vstack((matrix(seed), matrix(2, 3))) for seed in (0, 1)]
    made = build(base, {f"{EMBEDDING}.weight": grown[0], f"{HEAD}.weight": grown[1]})
    assert made.tokens_added == 3
    for module in ("embed_tokens", "lm_head"):
        ids, values = rows(made, module)
        assert ids == [300, 301, 302]
        assert (values == matrix(2, 3)).all()


def test_an_embedding_may_know_tokens_that_are_never_sampled(base):
    made = build(base, {f"{EMBEDDING}.weight": np.vstack((matrix(0), matrix(2, 1)))})
    assert made.tokens_added == 1
    assert rows(made, "lm_head")[0] == []


def test_what_a_base_ties_stays_tied(tied):
    own = {f"{EMBEDDING}.weight": np.vstack((changed(0, 4), matrix(2, 1)))}
    made = build(tied, own)
    assert rows(made, "embed_tokens")[0] == rows(made, "lm_head")[0] == [4, 300]
    again = build(tied, own | {f"{HEAD}.weight": own[f"{EMBEDDING}.weight"]})
    assert again == made


def test_a_module_of_its_own_is_not_tied(tied):
    made = build(tied, {f"{EMBEDDING}.weight": changed(0, 4)}, modules_to_save=["embed_tokens"])
    assert rows(made, "embed_tokens")[0] == [4]
    assert rows(made, "lm_head")[0] == []


@pytest.mark.parametrize(
    ("indices", "embedding", "head"),
    [
        ([9, 2], [2, 9], [2, 9]),
        ({"embed_tokens": [9, 2]}, [2, 9], [2, 9]),
        ({"embed_tokens": [9, 2], "lm_head": [9, 2]}, [2, 9], [2, 9]),
        ({"lm_head": [9, 2]}, [], [2, 9]),
        ({"embed_tokens": [9, 2], "lm_head": [3]}, [2, 9], [3]),
    ],
)
def test_rows_of_single_tokens_are_put_in_order(tied, indices, embedding, head):
    own = {f"{EMBEDDING}.{DELTA}": matrix(5, 2)} if embedding else {}
    if head and head != embedding:
        own[f"{HEAD}.{DELTA}"] = matrix(5, len(head))
    made = build(tied, own, trainable_token_indices=indices)
    for module, expected in (("embed_tokens", embedding), ("lm_head", head)):
        ids, values = rows(made, module)
        assert ids == expected
        if ids == [2, 9]:
            assert (values == matrix(5, 2)[::-1]).all()


def test_own_rows_have_the_update_in_them(base):
    """So that nothing has to be added where they are used."""
    grown = {
        f"{module}.base_layer.weight": np.vstack((matrix(seed), matrix(2, 1)))
        for seed, module in enumerate((EMBEDDING, HEAD))
    }
    own = lora(EMBEDDING, tokens=301) | lora(HEAD, tokens=301) | grown
    made = build(base, own, target_modules=[*TARGETS, "embed_tokens", "lm_head"])
    content = load(b"".join(made.file()))
    assert content["embed_tokens.A"].shape == (4, 300)
    assert content["lm_head.B"].shape == (300, 4)
    for module in ("embed_tokens", "lm_head"):
        ids, values = rows(made, module)
        assert ids == [300]
        np.testing.assert_allclose(values, matrix(2, 1) + 2 * 4, rtol=1e-6)


@pytest.mark.parametrize(
    ("names", "count"),
    [(["norm"], 5), (["model.norm"], 1), (["input_layernorm"], 2), (["0.input_layernorm"], 1)],
)
def test_norms_are_those_that_peft_means(base, names, count):
    all_of_them = {f"{MODEL}.norm.weight": matrix(1, 1)[0]}
    for layer in range(LAYERS):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            all_of_them[f"{MODEL}.layers.{layer}.{norm}.weight"] = matrix(layer, 1)[0]
    meant = {
        name: own
        for name, own in all_of_them.items()
        if name.removesuffix(".weight").endswith(tuple(names))
    }
    made = build(base, meant, modules_to_save=names)
    assert sum(name.endswith("norm") for name in made.tensors) == count
    with pytest.raises(BadAdapter, match=r"norm\.weight is missing, which modules_to_save names"):
        build(base, {}, modules_to_save=names)


def test_what_is_of_the_model_is_spread_over_all_layers(base):
    """A head in one layer's part of the pages would leave the others' empty."""
    plain = build(base, {})
    made = build(base, {f"{HEAD}.weight": matrix(3)}, modules_to_save=["lm_head"])
    more = [each.granules(base, base.shards(1)) for each in (plain, made)]
    assert more[1] - more[0] == 38 / LAYERS  # of 8 rows each


REFUSED = {
    "unnamed": ({f"{MODEL}.norm.weight": matrix(0, 1)[0]}, {}, "norm.weight: modules_to_save does"),
    "missing": ({}, WHOLE, "embed_tokens.weight is missing, which modules_to_save names"),
    "norm-shape": (
        {f"{MODEL}.norm.weight": matrix(0, 1)},
        {"modules_to_save": ["model.norm"]},
        r"norm.weight: shape \[1, 8\], expected \[8\]",
    ),
    "no-such-norm": (
        {f"{MODEL}.layers.0.self_attn.q_norm.weight": matrix(0, 1)[0]},
        {"modules_to_save": ["q_norm"]},
        "layers.0.self_attn.q_norm: the base has no such module",
    ),
    "no-such-layer": (
        {f"{MODEL}.layers.2.input_layernorm.weight": matrix(0, 1)[0]},
        {},
        "layers.2.input_layernorm: the base has no such module",
    ),
    "fewer-rows": (
        {f"{EMBEDDING}.weight": matrix(0, 299)}, {}, r"shape \[299, 8\], expected \[300, 8\]",
    ),
    "far-too-many-rows": (
        {f"{EMBEDDING}.weight": matrix(0, VOCABULARY + ADDED_TOKENS_MAX + 1)},
        {},
        "65537 rows more than the base; at most 65536 are taken",
    ),
    "columns": ({f"{HEAD}.weight": matrix(0)[:, :7]}, {}, r"shape \[300, 7\], expected \[300, 8\]"),
    "only-the-head-grew": (
        {f"{HEAD}.weight": np.vstack((matrix(1), matrix(1, 2)))},
        {},
        "lm_head has 302 rows and embed_tokens 300: what is sampled is fed again",
    ),
    "unlike-copies": (
        {f"{HEAD}.weight": matrix(2), f"{HEAD}.modules_to_save.weight": matrix(3)},
        {"modules_to_save": ["lm_head"]},
        "lm_head: the file has it twice, unlike each other",
    ),
    "copy-of-nothing": ({f"{HEAD}.base_layer.weight": matrix(2)}, {}, "does not name it; mend"),
    "infinite": (
        {f"{HEAD}.weight": np.full((300, 8), np.inf, np.float32)}, {}, "is infinite or NaN",
    ),
    "whole-and-update": (
        lora(HEAD) | {f"{HEAD}.weight": matrix(2)},
        {"modules_to_save": ["lm_head"], "target_modules": [*TARGETS, "lm_head"]},
        "modules_to_save: lm_head is in target_modules too",
    ),
    "token-of-nobody": (
        {f"{EMBEDDING}.{DELTA}": matrix(2, 1)},
        {"trainable_token_indices": [300]},
        r"trainable_token_indices: they must be different tokens of 0 \.\. 299",
    ),
    "token-twice": (
        {f"{EMBEDDING}.{DELTA}": matrix(2, 2)},
        {"trainable_token_indices": [3, 3]},
        "they must be different tokens",
    ),
    "tokens-without-rows": (
        {}, {"trainable_token_indices": [3]}, "trainable_tokens_delta is missing, which trainable",
    ),
    "rows-without-tokens": (
        {f"{EMBEDDING}.{DELTA}": matrix(2, 1)}, {}, "trainable_tokens_delta: the configuration",
    ),
    "tokens-of-another": (
        {}, {"trainable_token_indices": {"wte": [3]}}, "'wte' is not supported; name embed_tokens",
    ),
    "everything": ({}, {"modules_to_save": [""]}, "'' means everything; norms, embed_tokens and"),
    "twice": (
        {f"{MODEL}.norm.weight": matrix(0, 1)[0], "base_model.model.norm.weight": matrix(1, 1)[0]},
        {"modules_to_save": ["norm"]},
        "the module has two; remove one",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("own", "config", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_the_base_or_the_configuration_is_refused(base, own, config, message):
    with pytest.raises(BadAdapter, match=message):
        build(base, own, mib=4, **config)


def test_matrices_that_a_base_ties_must_not_differ(tied):
    own = {f"{EMBEDDING}.weight": changed(0, 4), f"{HEAD}.weight": changed(0, 5)}
    with pytest.raises(BadAdapter, match="the base ties them, and these differ"):
        build(tied, own)


@pytest.mark.parametrize("spoiled", [{}, {f"{HEAD}.lora_A.weight": np.zeros((4, 8), np.float32)}])
def test_updates_that_shall_be_tied_must_not_differ(tied, spoiled):
    config = {"target_modules": [*TARGETS, "embed_tokens"], "ensure_weight_tying": True}
    own = lora(EMBEDDING) | lora(HEAD)
    assert build(tied, own, **config).scales.keys() >= {"embed_tokens", "lm_head"}
    with pytest.raises(BadAdapter, match="ensure_weight_tying is set, and "):
        build(tied, lora(EMBEDDING) | (lora(HEAD) | spoiled if spoiled else {}), **config)


def test_whole_modules_take_so_much_and_no_more(base):
    own = {f"{EMBEDDING}.weight": changed(0, 7), f"{HEAD}.weight": changed(1, 0)}
    with pytest.raises(BadAdapter, match=r"more than max_whole_modules_mib \(0\); raise it, or"):
        build(base, own, mib=0, **WHOLE)


@pytest.mark.parametrize("spoil", ["gone", "short", "other", "no-json"])
def test_a_base_that_cannot_be_compared_is_told_of(tmp_path, spoil):
    path = tmp_path / "model.safetensors"
    content = save({"lm_head.weight": matrix(0, 299 if spoil == "other" else 300)})
    if spoil == "short":
        content = content[:-1]
    if spoil == "no-json":
        content = content[:20]
    if spoil != "gone":
        path.write_bytes(content)
    with pytest.raises(BadAdapter, match=r"the base's weights cannot be compared with it: .*"):
        build(shapes(tmp_path), {f"{HEAD}.weight": changed(1, 0)}, modules_to_save=["lm_head"])


def test_what_an_invocation_cannot_hold_back_is_refused_beside_one(base):
    targets = {"target_modules": [*TARGETS, "embed_tokens", "lm_head"]}
    invoked = {"alora_invocation_tokens": [5]}
    copies = {f"{EMBEDDING}.base_layer.weight": matrix(0), f"{HEAD}.base_layer.weight": matrix(1)}
    with pytest.raises(BadAdapter, match="alora_invocation_tokens: what changes embed_tokens"):
        build(base, lora(EMBEDDING) | lora(HEAD) | copies, **targets, **invoked)
    head = {"target_modules": [*TARGETS, "lm_head"]}
    assert build(base, lora(HEAD), **head, **invoked).invocation_tokens == (5,)

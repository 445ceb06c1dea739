"""What PEFT can train and weft does not compute is refused by name, with what to do instead."""

import dataclasses
import json

import peft
import pytest
from peft import LoraConfig
from transformers import AutoModel

from tests.actors.adapters.folders import CONFIG, build, folder
from weft.actors.adapters.errors import BadAdapter

pytestmark = pytest.mark.filterwarnings("ignore::peft.utils.warning.PeftWarning")

PLAIN = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj"]}

# What a user asks PEFT for, and what the refusal must say.
LORA = {
    "bias-all": ({"bias": "all"}, r"bias: 'all' .*train it with bias none"),
    "bias-lora": ({"bias": "lora_only"}, r"bias: 'lora_only' .*train it with bias none"),
    "whole-layers": (
        {"modules_to_save": ["mlp"]},
        r"modules_to_save: 'mlp' means model.layers.0.mlp; norms, .* train the others with LoRA",
    ),
    "whole-linear": (
        {"modules_to_save": ["norm", "down_proj"]},
        r"modules_to_save: 'down_proj' means model.layers.0.mlp.down_proj; norms, ",
    ),
    "head-dora": (
        {"target_modules": ["q_proj", "lm_head"], "use_dora": True},
        r"use_dora: not supported on lm_head; .*leave lm_head out of target_modules",
    ),
    "embedding-dora": (
        {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True},
        r"use_dora: not supported on embed_tokens; ",
    ),
    "head-bias": (
        {"target_modules": ["q_proj", "lm_head"], "lora_bias": True},
        r"lora_bias: not supported on lm_head; ",
    ),
    "repeated-layers": (
        {"layer_replication": [(0, 2), (1, 2)]},
        r"layer_replication: .*train the adapter without it",
    ),
    "activated-whole": (
        {"alora_invocation_tokens": [5], "modules_to_save": ["norm"]},
        r"alora_invocation_tokens: .* modules_to_save, which does not wait for an invocation; ",
    ),
    "pissa": ({"init_lora_weights": "pissa"}, r"init_lora_weights: 'pissa' .*convert the adapter"),
    "fast-pissa": ({"init_lora_weights": "pissa_niter_4"}, r"'pissa_niter_4' .*convert the adapt"),
    "olora": ({"init_lora_weights": "olora"}, r"init_lora_weights: 'olora' .*convert the adapter"),
}

OTHER_TYPES = {
    "IA3": lambda: peft.IA3Config(
        task_type="CAUSAL_LM",
        target_modules=["k_proj", "down_proj"],
        feedforward_modules=["down_proj"],
    ),
    "ADALORA": lambda: peft.AdaLoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj"], total_step=10
    ),
    "LOHA": lambda: peft.LoHaConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]),
    "LOKR": lambda: peft.LoKrConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]),
    "VERA": lambda: peft.VeraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]),
    "PROMPT_TUNING": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "PREFIX_TUNING": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}

# Fields of PEFT's LoRA that leave the sum of the base and scale B A as it is.
HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "eva_config", "inference_mode", "lora_dropout",
    "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config",
}  # fmt: skip
COMPUTED = {
    "peft_type", "task_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern",
    "target_modules", "init_lora_weights", "bias", "exclude_modules", "layers_to_transform",
    "layers_pattern", "use_dora", "lora_bias", "modules_to_save", "trainable_token_indices",
    "ensure_weight_tying", "alora_invocation_tokens",
}  # fmt: skip
FIELDS = {field.name for field in dataclasses.fields(LoraConfig)}


@pytest.mark.parametrize(("options", "message"), LORA.values(), ids=LORA)
def test_what_is_not_computed_is_refused_by_name(made, read, options, message):
    saved, _ = made(**PLAIN | options)
    with pytest.raises(BadAdapter, match=message):
        read(saved)


@pytest.mark.parametrize(("kind", "config"), OTHER_TYPES.items(), ids=OTHER_TYPES)
def test_adapters_of_other_types_are_refused_by_their_type(saved_by_peft, read, kind, config):
    saved, _ = saved_by_peft(config())
    with pytest.raises(BadAdapter, match=f"peft_type: '{kind}' .*it must be LORA"):
        read(saved)


def test_an_adapter_for_another_task_is_refused(made, read):
    saved, _ = made(r=4, target_modules=["q_proj"], task_type="FEATURE_EXTRACTION", load=AutoModel)
    with pytest.raises(BadAdapter, match=r"task_type: 'FEATURE_EXTRACTION' .*CAUSAL_LM or null"):
        read(saved)


@pytest.mark.parametrize("field", [*sorted(FIELDS - HARMLESS - COMPUTED), "of_a_later_version"])
@pytest.mark.parametrize("value", [True, 1, "x", [0], {"a": 1}], ids=repr)
def test_a_field_that_may_change_the_result_is_refused_if_it_says_anything(field, value):
    with pytest.raises(BadAdapter, match=f"^{field}: .* is not supported; .*"):
        build(folder({field: value}))


EMPTY_TOO = {
    "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save",
    "trainable_token_indices", "alora_invocation_tokens",
}  # fmt: skip


@pytest.mark.parametrize("field", [*sorted(FIELDS - COMPUTED | EMPTY_TOO), "of_a_later_version"])
@pytest.mark.parametrize("value", [None, False, [], {}, ""], ids=repr)
def test_a_field_that_says_nothing_is_no_reason_to_refuse(field, value):
    assert build(folder({field: value})) == build(folder())


@pytest.mark.parametrize("field", sorted(HARMLESS & FIELDS))
def test_a_field_without_effect_is_no_reason_to_refuse(field):
    assert build(folder({field: ["x"]})) == build(folder())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"layers_to_transform": [0], "target_modules": ".*q_proj|.*down_proj"},
            "layers_to_transform: .*list the modules by name",
        ),
        ({"layers_pattern": "layers"}, "layers_pattern: .*leave it out"),
        ({"layers_to_transform": 0, "layers_pattern": "("}, "layers_pattern: .*no regular exp"),
        ({"layers_to_transform": 0, "layers_pattern": ["x"] * 33}, "layers_pattern: 33 entries"),
        ({"layers_to_transform": [0.5]}, "layers_to_transform"),
        ({"use_dora": True, "lora_bias": True}, "lora_bias: .*together with use_dora"),
        (
            {"alora_invocation_tokens": [5], "use_dora": True},
            "alora_invocation_tokens: .*together with use_dora",
        ),
        ({"alora_invocation_tokens": [-5]}, "alora_invocation_tokens: -5 is no token id"),
        (
            {"alora_invocation_tokens": [5] * 257},
            "alora_invocation_tokens: 257 tokens; at most 256",
        ),
        ({"exclude_modules": "("}, "exclude_modules: .*no regular expression"),
    ],
)
def test_what_peft_itself_would_not_load_is_refused(fields, message):
    with pytest.raises(BadAdapter, match=message):
        build(folder(fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"exclude_modules": ["q_proj"]},
        {"exclude_modules": r".*\.1\..*"},
        {"layers_to_transform": [0]},
        {"layers_to_transform": 1, "layers_pattern": ["blocks", "layers"]},
        {"layers_to_transform": [0, 1], "layers_pattern": "h"},
    ],
)
def test_a_tensor_of_a_module_that_peft_would_leave_alone_is_refused(fields):
    with pytest.raises(BadAdapter, match="target_modules does not cover it"):
        build(folder(fields))


@pytest.mark.parametrize("init", ["corda", "loftq", "lora_ga", "mini", 2, ["pissa"], {"a": 1}])
def test_an_unknown_initialization_is_refused(init):
    with pytest.raises(BadAdapter, match=r"init_lora_weights: .*may change the base's weights"):
        build(folder({"init_lora_weights": init}))


def test_a_missing_type_is_refused():
    config = {name: value for name, value in CONFIG.items() if name != "peft_type"}
    with pytest.raises(BadAdapter, match="peft_type: None is not supported; it must be LORA"):
        build(folder() | {"adapter_config.json": json.dumps(config).encode()})


@pytest.mark.parametrize(("name", "first", "last"), [("lora_alpha", 4, 16), ("use_dora", 0, 1)])
def test_a_field_that_is_given_twice_is_refused(name, first, last):
    """Its first value may be what somebody was shown, its last what PEFT takes."""
    raw = json.dumps(CONFIG | {name: first})[:-1] + f', "{name}": {last}}}'
    with pytest.raises(BadAdapter, match="a name occurs twice"):
        build(folder() | {"adapter_config.json": raw.encode()})

from pathlib import Path

import pytest

from weft.runtime.config import ANY_OTHER, Config, ConfigError, Limits, TenantLimits, load


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    return tmp_path


def write(folder, text="model: base\n"):
    path = folder / "weft.yaml"
    path.write_text(text)
    return path


def test_a_file_with_a_model_is_enough(folder):
    config = load(write(folder))
    assert config.model == str(folder / "base")
    assert config.base_name == "base"
    assert config.max_num_seqs == 256


def test_paths_are_relative_to_the_file(folder, monkeypatch):
    monkeypatch.chdir("/")
    (folder / "x").mkdir()
    config = load(
        write(folder, "model: base\nadapters: {a: x/a, b: /y/b}\nchat_template: t.jinja\n")
    )
    assert config.adapters == {"a": str(folder / "x/a"), "b": "/y/b"}
    assert config.chat_template == str(folder / "t.jinja")


def test_the_command_line_overrides_the_file(folder):
    path = write(folder, "model: base\nmax_num_seqs: 4\nadapters: {a: x}\n")
    config = load(path, {"max_num_seqs": "32", "adapters": "{b: y}", "enable_prefix_caching": "no"})
    assert config.max_num_seqs == 32
    assert list(config.adapters) == ["b"]
    assert config.enable_prefix_caching is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "model: base\nmax_num_seq: 4\n",
            "unknown option 'max_num_seq'; did you mean 'max_num_seqs'",
        ),
        ("model: base\nzzz: 4\n", "unknown option 'zzz'$"),
        ("- a\n", "a mapping of option to value is needed"),
        ("model: [\n", "weft.yaml: "),
        ("{}\n", "missing required field `model`"),
        ("model: base\nmax_num_seqs: many\n", r"Expected `int`, got `str` - at `\$.max_num_seqs`"),
        ("model: base\ndtype: int4\n", "dtype"),
        ("model: base\nblock_size: 0\n", "block_size is 0: it must be positive"),
        ("model: base\nmax_num_seqs: 1024\n", "less than max_num_seqs"),
        ("model: base\nmax_loras_per_batch: 100\n", "max_loaded_loras"),
        ("model: base\nmax_cpu_loras: 0\n", "max_cpu_loras must be positive"),
        ("model: base\nadapter_host_memory_mib: -1\n", "adapter_host_memory_mib is -1"),
        ("model: base\ngpu_memory_utilization: 1.5\n", "a share"),
        ("model: base\nport: 70000\n", "port is 70000"),
        ("model: base\ndrain_timeout_s: -1\n", "cannot be negative"),
        ("model: base\nthreads: 0\n", "threads must be positive"),
        ("model: base\ntensor_parallel_size: 0\n", "tensor_parallel_size is 0: it must be"),
        ("model: base\ntensor_parallel_size: 65\n", "each is a process .* at most 64"),
        ("model: base\ndata_parallel_size: 0\n", "data_parallel_size is 0: it must be"),
        (
            "model: base\ntensor_parallel_size: 8\ndata_parallel_size: 9\n",
            "tensor_parallel_size times data_parallel_size is 72",
        ),
        ("model: base\nload_balance_method: least\n", "load_balance_method"),
        ("model: nowhere\n", "no config.json in"),
        ("model: base\nadapters: {base: x}\n", "'base' is the base model's own name"),
    ],
)
def test_what_cannot_work_is_refused_with_what_to_change(folder, text, message):
    with pytest.raises(ConfigError, match=message):
        load(write(folder, text))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "none.yaml")


def test_an_override_that_is_no_yaml_is_refused(folder):
    with pytest.raises(ConfigError, match="adapters"):
        load(write(folder), {"adapters": "{a: ["})


def test_the_base_models_name_can_be_chosen():
    assert Config(model="/models/base", served_model_name="weaver").base_name == "weaver"
    assert Config(model="/models/base").base_name == Path("/models/base").name


def test_tenants_and_limits_are_read_and_checked(folder):
    text = (
        "tenants: {ann: {weight: 2, max_concurrency: 3}, '*': {max_lora_rank: 8}}\n"
        "adapter_limits: {sql: {max_tokens_per_minute: 100}}\n"
    )
    config = load(write(folder, "model: base\n" + text))
    assert config.scheduling_policy == "vtc"
    assert config.tenants["ann"] == TenantLimits(weight=2.0, max_concurrency=3)
    assert config.tenants[ANY_OTHER].max_lora_rank == 8
    assert config.adapter_limits == {"sql": Limits(max_tokens_per_minute=100)}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("tenants: {ann: {weight: 0}}", "weight is 0.0: it must be positive"),
        ("tenants: {ann: {weight: .inf}}", "weight is inf"),
        ("tenants: {ann: {max_concurrency: 0}}", "max_concurrency is 0: it must be positive"),
        ("tenants: {ann: {max_lora_rank: -1}}", "max_lora_rank is -1"),
        ("tenants: {ann: {wait: 1}}", "unknown field `wait`"),
        ("adapter_limits: {a: {weight: 1}}", "unknown field `weight`"),
        ("adapter_limits: {a: {max_tokens_per_minute: 0}}", "max_tokens_per_minute is 0"),
        ("scheduling_policy: lpm", "scheduling_policy"),
    ],
)
def test_limits_that_mean_nothing_are_refused(folder, line, message):
    with pytest.raises(ConfigError, match=message):
        load(write(folder, f"model: base\n{line}\n"))


def test_api_keys_stand_in_the_file_or_in_one_of_their_own(folder):
    (folder / "keys.yaml").write_text("sk-1: ann\nsk-2: ann\n")
    assert load(write(folder, "model: base\napi_keys: {sk-3: bob}\n")).tenant_of_key == {
        "sk-3": "bob"
    }
    assert load(write(folder, "model: base\napi_keys: keys.yaml\n")).tenant_of_key == {
        "sk-1": "ann",
        "sk-2": "ann",
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- sk-secret\n", "must be a YAML mapping of key to tenant"),
        ("sk-secret: [\n", "must be a YAML mapping of key to tenant"),
        ("sk-secret: 5\n", "must be a YAML mapping of key to tenant"),
        ("sk-secret: ''\n", "key 1 has no tenant's name"),
        ("sk-0: ann\nsk secret: ann\n", "key 2 must be printable ASCII without spaces"),
        ("sk-0: ann\nsk-secrét: ann\n", "key 2 must be printable ASCII"),
        (None, "No such file"),
    ],
)
def test_no_complaint_about_keys_quotes_one(folder, content, message):
    if content is not None:
        (folder / "keys.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load(write(folder, "model: base\napi_keys: keys.yaml\n"))
    assert "secr" not in str(caught.value)


def test_adapters_may_be_of_the_hub_and_at_urls(folder):
    text = "model: base\nadapters: [a=org/a@v1, 'b=s3://bucket/b', c=./org/c]\n"
    config = load(write(folder, f"{text}adapter_sources: [hf://org/, 's3://bucket']\n"))
    here = f"{folder}/./org/c"
    assert config.adapters == {"a": "hf://org/a@v1", "b": "s3://bucket/b", "c": here}
    assert config.adapter_sources == ["hf://org", "s3://bucket"]
    assert config.has_remote_adapters
    config = load(write(folder, "model: base\nadapters: {c: ./org/c}\nadapter_cache: x\n"))
    assert not config.has_remote_adapters
    assert config.adapter_cache == str(folder / "x")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("adapters: {a: 's3://bucket/../b'}", "adapters: a: 's3://bucket/../b': '..' in a URL"),
        ("adapters: {a: '/a#digest=x'}", "64 hexadecimal digits"),
        ("adapter_sources: [/adapters]", "adapter_sources: '/adapters': it must begin with hf://"),
        ("adapter_sources: ['file:///a']", "adapter_roots"),
        ("adapter_cache_mib: 0", "must be positive"),
    ],
)
def test_sources_that_mean_nothing_are_refused(folder, line, words):
    with pytest.raises(ConfigError, match=words):
        load(write(folder, f"model: base\n{line}\n"))

"""Configuration: one YAML file to frozen structs, every check once at start."""

from __future__ import annotations

import difflib
import math
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from weft.runtime import sources

# More than any machine has devices; that a model cannot be split so is only known once it is read.
RUNNERS_MAX = 64


class ConfigError(Exception):
    """The configuration cannot be used; the message says what to change."""


# In ``tenants`` and ``adapter_limits``: everyone who is not named.
ANY_OTHER = "*"


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an adapter's requests may take together. None: as much as there is."""

    max_concurrency: int | None = None  # requests under way; each choice counts
    max_tokens_per_minute: int | None = None  # of prompts and answers

    def __post_init__(self) -> None:
        for name in ("max_concurrency", "max_tokens_per_minute"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} is {value}: it must be positive")


class TenantLimits(Limits, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a tenant may take, and its share of what there is."""

    weight: float = 1.0  # twice the weight, twice the tokens when all want more than there is
    max_lora_rank: int | None = None  # of the adapters that it may use

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.weight < math.inf:
            raise ValueError(f"weight is {self.weight}: it must be positive")
        if self.max_lora_rank is not None and self.max_lora_rank <= 0:
            raise ValueError(f"max_lora_rank is {self.max_lora_rank}: it must be positive")


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that can be configured. Names follow vLLM and SGLang where they have one."""

    # Model.
    model: str  # a Hugging Face folder; relative to the configuration file
    served_model_name: str | None = None  # default: the folder's name
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = (
        "auto"  # of the weights; auto: as saved
    )
    # Of the linear layers: bytes are multiplied by bytes. On a CPU.
    quantization: Literal["none", "int8"] | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    chat_template: str | None = None  # a Jinja file over the tokenizer's own

    # Adapters.
    # name -> PEFT folder, relative to the configuration file, hub id or URL; or "name=source" each.
    adapters: dict[str, str] = {}
    adapters_folder: str | None = None  # its sub-folders are adapters too, read at first use
    adapter_roots: list[str] = []  # where requests may load adapters from, beside those above
    adapter_sources: list[str] = []  # the same of hf://, s3:// and the like: what lies below these
    adapter_cache: str | None = None  # where downloads are kept; default: ~/.cache/weft/adapters
    adapter_cache_mib: int = 16384
    max_lora_rank: int = 64
    # Embeddings, heads and norms that an adapter's file may have beside LoRA; 0: none.
    max_whole_modules_mib: int = 2048
    max_loras_per_batch: int = 8  # distinct adapters that run at once
    max_loras_per_request: int = 4  # adapters whose updates one request may add up
    max_loaded_loras: int = 64  # distinct adapters on the device
    adapter_host_memory_mib: float = 4096  # of adapters in host memory
    # Distinct adapters in host memory, beside those that are pinned; default: as many as fit.
    max_cpu_loras: int | None = None
    lora_dtype: Literal["auto", "float32", "bfloat16", "float16"] = (
        "auto"  # of adapters on the device; auto: as the weights of the model
    )
    lora_eviction_policy: Literal["lru", "fifo"] = "lru"

    # Batch and memory.
    max_model_len: int | None = None  # tokens; default: the model's, as far as the pages reach
    max_num_seqs: int = 256  # rows of a step
    max_num_batched_tokens: int = 512  # tokens of a step
    block_size: int = 16  # tokens whose KV fills a page
    kv_cache_memory_mib: int = 512  # for KV and adapters, on CPU
    gpu_memory_utilization: float = 0.9  # on CUDA, weights included
    enforce_eager: bool = False  # on CUDA: no graphs of decode steps
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    max_queued_requests: int = 1024  # beyond it: 429
    tensor_parallel_size: int = 1  # runners that share one model
    data_parallel_size: int = 1  # replicas of the model, each with a scheduler of its own
    load_balance_method: Literal["adapter_aware", "total_tokens", "round_robin"] = (
        "adapter_aware"  # which replica a request goes to
    )
    threads: int | None = None  # of each runner on CPU; default: the cores, divided among them

    # Tenants: whose requests share one turn. The key's owner, else ``user``, else the adapter.
    scheduling_policy: Literal["vtc", "fcfs"] = "vtc"  # among tenants
    tenants: dict[str, TenantLimits] = {}  # by name
    adapter_limits: dict[str, Limits] = {}  # by name
    api_keys: dict[str, str] | str = {}  # key -> tenant, or a YAML file of that

    # Serving.
    host: str = "127.0.0.1"
    port: int = 8000
    drain_timeout_s: float = 30.0
    # After which runners that do not get on with a step are started again.
    watchdog_timeout_s: float = 300.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    example_prompts: dict[str, str] = {}  # name -> what the examples shown at start ask it

    def __post_init__(self) -> None:
        def need(ok: bool, message: str) -> None:
            if not ok:
                raise ConfigError(message)

        for name in (
            "max_lora_rank", "max_loras_per_batch", "max_loras_per_request", "max_loaded_loras",
            "max_num_seqs", "max_num_batched_tokens", "block_size", "kv_cache_memory_mib",
            "max_queued_requests", "tensor_parallel_size", "data_parallel_size",
            "adapter_host_memory_mib", "adapter_cache_mib",
        ):  # fmt: skip
            value = getattr(self, name)
            need(value > 0, f"{name} is {value}: it must be positive")
        need(
            self.max_num_batched_tokens >= self.max_num_seqs,
            f"max_num_batched_tokens is {self.max_num_batched_tokens}, less than max_num_seqs "
            f"({self.max_num_seqs}): every running sequence decodes one token a step; raise the "
            f"former or lower the latter",
        )
        need(
            self.enable_chunked_prefill
            or (
                self.max_model_len is not None
                and self.max_num_batched_tokens >= self.max_model_len + self.max_num_seqs
            ),
            "enable_chunked_prefill is false: a step must have room for the longest prompt, so set "
            "max_model_len, and max_num_batched_tokens to at least max_model_len + max_num_seqs",
        )
        need(
            self.max_loaded_loras >= self.max_loras_per_batch,
            f"max_loaded_loras ({self.max_loaded_loras}) must not be less than max_loras_per_batch "
            f"({self.max_loras_per_batch}): what runs together is on the device together",
        )
        need(
            self.runners <= RUNNERS_MAX,
            f"tensor_parallel_size times data_parallel_size is {self.runners}: each is a process "
            f"on this machine, at most {RUNNERS_MAX}",
        )
        need(0 < self.gpu_memory_utilization <= 1, "gpu_memory_utilization is a share: 0 to 1")
        need(0 <= self.port < 65536, f"port is {self.port}: it must be 0 (any free one) to 65535")
        need(self.max_whole_modules_mib >= 0, "max_whole_modules_mib cannot be negative")
        need(self.drain_timeout_s >= 0, "drain_timeout_s cannot be negative")
        need(self.watchdog_timeout_s > 0, "watchdog_timeout_s must be positive")
        need(self.max_cpu_loras is None or self.max_cpu_loras > 0, "max_cpu_loras must be positive")
        need(self.threads is None or self.threads > 0, "threads must be positive")

    @property
    def runners(self) -> int:
        """Runners of all replicas."""
        return self.tensor_parallel_size * self.data_parallel_size

    @property
    def host_memory_bytes(self) -> int:
        """What adapters may take in host memory."""
        return int(self.adapter_host_memory_mib * 1024 * 1024)

    @property
    def tenant_of_key(self) -> dict[str, str]:
        """Whom each API key belongs to. Empty: no key is asked for."""
        assert isinstance(self.api_keys, dict), "load has read the file"
        return self.api_keys

    @property
    def row_loras_max(self) -> int:
        """The most adapters of one request: all of them run in one batch."""
        return min(self.max_loras_per_request, self.max_loras_per_batch)

    @property
    def has_remote_adapters(self) -> bool:
        """Whether anything may have to be downloaded."""
        return bool(self.adapter_sources) or any(map(sources.is_remote, self.adapters.values()))

    @property
    def whole_modules_bytes_max(self) -> int:
        """Bytes of whole modules that an adapter's file may have."""
        return self.max_whole_modules_mib * 1024 * 1024

    @property
    def base_name(self) -> str:
        """The name that clients use for the base model."""
        return self.served_model_name or Path(self.model).name


def load(path: Path, overrides: dict[str, str] | None = None) -> Config:
    """Read a YAML file; ``overrides`` come from the command line and are YAML values themselves.

    Paths in the result are absolute. Raises ``ConfigError``.
    """
    try:
        raw = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a mapping of option to value is needed")
    for name, value in (overrides or {}).items():
        try:
            raw[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"{name}: {error}") from None
    for key in raw:
        if key not in Config.__struct_fields__:
            raise ConfigError(f"{path}: unknown option {key!r}{_nearest(str(key))}")
    if isinstance(raw.get("adapters"), list):
        raw["adapters"] = _mapping(raw["adapters"])
    try:
        config = msgspec.convert(raw, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from None
    return _with_absolute_paths(config, path.resolve().parent)


def _mapping(pairs: list[Any]) -> dict[str, str]:
    """Return what a list of "name=folder" says. Raises ``ConfigError``."""
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, folder = str(pair).partition("=")
        if not (name and equals and folder):
            raise ConfigError(f"adapters: {pair!r} is no name=folder")
        if name in found:
            raise ConfigError(f"adapters: {name!r} is there twice; a name means one adapter")
        found[name] = folder
    return found


def _nearest(key: str) -> str:
    near = difflib.get_close_matches(key, Config.__struct_fields__, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _with_absolute_paths(config: Config, folder: Path) -> Config:
    changes: dict[str, Any] = {
        "model": str(folder / config.model),
        "adapters": {name: _located(name, s, folder) for name, s in config.adapters.items()},
        "adapter_sources": [_prefix(prefix) for prefix in config.adapter_sources],
    }
    if config.adapter_cache:
        changes["adapter_cache"] = str(folder / config.adapter_cache)
    changes["adapter_roots"] = [str(folder / root) for root in config.adapter_roots]
    if config.adapters_folder:
        changes["adapters_folder"] = str(folder / config.adapters_folder)
    if config.chat_template:
        changes["chat_template"] = str(folder / config.chat_template)
    changes["api_keys"] = _checked_keys(config.api_keys, folder)
    config = msgspec.structs.replace(config, **changes)
    if not Path(config.model, "config.json").is_file():
        raise ConfigError(f"model: no config.json in {config.model}")
    for name in config.example_prompts:
        if name not in (config.base_name, *config.adapters):
            raise ConfigError(f"example_prompts: {name!r} is neither the base nor an adapter")
    if config.base_name in config.adapters:
        raise ConfigError(f"adapters: {config.base_name!r} is the base model's own name")
    return config


def _located(name: str, source: str, folder: Path) -> str:
    """Return a source that does not depend on where the configuration's file lies."""
    try:
        return sources.located(source, str(folder))
    except sources.BadSource as error:
        raise ConfigError(f"adapters: {name}: {source!r}: {error}") from None


def _prefix(prefix: str) -> str:
    try:
        return str(sources.parse_prefix(prefix))
    except sources.BadSource as error:
        raise ConfigError(f"adapter_sources: {prefix!r}: {error}") from None


def _checked_keys(keys: dict[str, str] | str, folder: Path) -> dict[str, str]:
    """Return key to tenant. No error quotes what may be a key."""
    if isinstance(keys, str):
        keys = _read_keys(folder / keys)
    for place, (key, tenant) in enumerate(keys.items(), 1):
        if not key.isascii() or not key.isprintable() or not key.strip() or " " in key:
            raise ConfigError(f"api_keys: key {place} must be printable ASCII without spaces")
        if not tenant:
            raise ConfigError(f"api_keys: key {place} has no tenant's name")
    return keys


def _read_keys(path: Path) -> dict[str, str]:
    try:
        return msgspec.convert(yaml.safe_load(path.read_text()), dict[str, str])
    except OSError as error:
        raise ConfigError(f"api_keys: {error}") from None
    except (UnicodeDecodeError, yaml.YAMLError, msgspec.ValidationError):
        raise ConfigError(f"api_keys: {path} must be a YAML mapping of key to tenant") from None

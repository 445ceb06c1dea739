"""What each option of the configuration means: what README.md has, without links.

``weft serve --help`` shows it.
"""

from __future__ import annotations

MEANINGS = {
    "model": "a Hugging Face folder: config.json, safetensors, tokenizer.json",
    "served_model_name": "the base's name in requests; otherwise the folder's name",
    "dtype": "of the weights: `float32`, `bfloat16`, `float16`; `auto`: as they were saved",
    "quantization": "`int8`: linear layers multiply bytes by bytes, on a CPU",
    "device": "`cpu` or `cuda`; `auto`: a GPU if there is one",
    "chat_template": "a Jinja file, instead of the tokenizer's own template",
    "adapters": "name to PEFT folder, hub id or URL, or a list of `name=source`",
    "adapters_folder": (
        "a folder whose sub-folders are adapters too, by their names: found and dropped as "
        "they come and go, read when first asked for"
    ),
    "adapter_roots": "folders that requests may load adapters from, beside those above",
    "adapter_sources": (
        "what requests may have downloaded: `hf://my-org/`, `s3://bucket/adapters/`, and all below"
    ),
    "adapter_cache": "where downloads are kept; otherwise `~/.cache/weft/adapters`",
    "adapter_cache_mib": "how much of them; what was used longest ago leaves first",
    "max_lora_rank": "adapters of a higher rank are refused",
    "max_whole_modules_mib": (
        "what an adapter's file may have of embeddings, heads and norms, beside LoRA; 0: none"
    ),
    "max_loras_per_batch": "distinct adapters that run at once; the base is free",
    "max_loras_per_request": "adapters whose updates one request may add up",
    "max_loaded_loras": "distinct adapters on the device, as far as memory reaches",
    "adapter_host_memory_mib": (
        "memory of the host for adapters; one may take half of it, and half may be pinned"
    ),
    "max_cpu_loras": (
        "distinct adapters in host memory, beside those that are pinned; otherwise as many as fit"
    ),
    "lora_dtype": "type of adapter weights on the device; `auto`: that of the model's weights",
    "lora_eviction_policy": "which adapter that nobody uses leaves first: `lru` or `fifo`",
    "max_model_len": "tokens of prompt and answer; otherwise the model's",
    "max_num_seqs": "sequences of a batch",
    "max_num_batched_tokens": "tokens of a step: decodes first, then prefill in chunks",
    "block_size": "tokens whose KV fills a page",
    "kv_cache_memory_mib": (
        "memory for KV and adapters on a CPU, of all runners of all replicas together"
    ),
    "gpu_memory_utilization": "share of a GPU's memory, weights included",
    "enforce_eager": "launch each kernel of a decode step, instead of a CUDA graph of them",
    "enable_prefix_caching": "keep the KV of prompts for later ones that begin alike",
    "enable_chunked_prefill": "let a long prompt share steps with decodes",
    "max_queued_requests": (
        "requests that may wait; beyond it: 429; an eighth is kept for tenants with less "
        "than their share"
    ),
    "tensor_parallel_size": "runners, a process each, that share one model",
    "data_parallel_size": (
        "replicas of the model, each with runners, memory and a scheduler of its own"
    ),
    "load_balance_method": (
        "which replica gets a request: one with its adapter and prompt, or `total_tokens` "
        "(the least work), `round_robin`"
    ),
    "threads": "of each runner on a CPU; otherwise the cores, divided among them",
    "scheduling_policy": (
        "whose request is next: `vtc`, that of the tenant who has had least; `fcfs`, the "
        "one that came first"
    ),
    "tenants": (
        "name to `weight`, `max_concurrency`, `max_tokens_per_minute`, `max_lora_rank`; "
        "`*`: everyone else"
    ),
    "adapter_limits": "adapter to `max_concurrency`, `max_tokens_per_minute`; `*`: every other",
    "api_keys": "key to tenant, or a YAML file of that; without keys everybody may ask",
    "host": "where HTTP listens",
    "port": "0: any free one",
    "drain_timeout_s": (
        "how long SIGTERM waits for what has begun; what has not ended then ends with an error"
    ),
    "watchdog_timeout_s": (
        "how long a runner may be at one step before all of its group are started again"
    ),
    "loading_timeout_s": "how long a runner that starts may load or compile without getting on",
    "log_level": "`debug`, `info`, `warning` or `error`",
    "example_prompts": "what the examples shown at start ask: model to prompt",
}

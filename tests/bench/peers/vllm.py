"""vLLM's build for CPUs, its OpenAI server over HTTP."""

import os
from contextlib import contextmanager

from tests.bench.peers import completions, process


def missing(peers):
    """Say what is needed first; None: nothing."""
    return None if _python(peers).exists() else f"{_python(peers)} is not there"


@contextmanager
def start(setting):
    """Yield ``Ask``."""
    port = process.free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        # Its program `vllm` looks for its version under another name than the wheel for CPUs has.
        _python(setting.peers), "-m", "vllm.entrypoints.openai.api_server",
        "--model", setting.model, "--served-model-name", "base",
        "--port", str(port), "--dtype", setting.dtype, "--max-model-len", str(setting.context),
        "--max-num-seqs", str(setting.load.requests), "--no-enable-prefix-caching",
        # As weft's own default: with more, LoRA's copies for each token of a prompt take gigabytes.
        "--max-num-batched-tokens", "512",
    ]  # fmt: skip
    if setting.adapters:
        count = str(len(setting.adapters))
        command += ["--enable-lora", "--max-lora-rank", str(setting.rank_max)]
        command += ["--max-loras", count, "--max-cpu-loras", count, "--lora-modules"]
        command += [f"{name}={path}" for name, path in setting.adapters.items()]
    environment = _environment(setting)
    with process.serving(command, ready_url=f"{url}/health", environment=environment):
        yield completions.asker(url)


def _python(peers):
    return peers / "vllm/bin/python"


def _environment(setting):
    cores = sorted(os.sched_getaffinity(0))[: setting.threads]
    # Neither this process's threads nor its packages: both would be found first.
    foreign = ("OMP_", "GOMP_", "PYTHONPATH", "VIRTUAL_ENV")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    return kept | {
        "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_CACHE_ROOT": str(setting.peers / "vllm-cache"),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }

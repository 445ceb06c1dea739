"""llama.cpp's server over HTTP, with the model and the adapters converted to GGUF."""

import importlib.util
from contextlib import contextmanager

from tests.bench.peers import process
from tests.bench.peers.engine import Answer


def missing(peers):
    """Say what is needed first; None: nothing."""
    if not _program(peers).exists():
        return f"{_program(peers)} is not there"
    if importlib.util.find_spec("gguf") is None:
        return "the package gguf is not installed (weft's extra `bench`)"
    return None


@contextmanager
def start(setting):
    """Yield ``Ask``."""
    from tests.bench.peers import gguf_files  # needs a package that not everybody has

    port = process.free_port()
    url = f"http://127.0.0.1:{port}"
    model = gguf_files.save_model(setting.model, setting.place, setting.dtype)
    # Keys and values as exact as the weights; its default is float16.
    kv = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[setting.dtype]
    slots = setting.load.requests
    command = [
        _program(setting.peers), "--model", model, "--port", str(port), "--parallel", str(slots),
        "--ctx-size", str(slots * setting.context), "--threads", str(setting.threads),
        "--threads-batch", str(setting.threads), "--cache-type-k", kv, "--cache-type-v", kv,
        "--cache-ram", "0", "--lora-init-without-apply",
    ]  # fmt: skip
    numbers = {name: number for number, name in enumerate(setting.adapters)}
    for path in setting.adapters.values():
        command += ["--lora", gguf_files.save_adapter(path, model, setting.place, setting.dtype)]
    with process.serving(command, ready_url=f"{url}/health", environment=None):

        def ask(prompts, tokens):
            bodies = [
                {
                    "prompt": prompt, "n_predict": tokens, "temperature": 0, "ignore_eos": True,
                    "cache_prompt": False, "return_tokens": True,
                    # Adapters that are not named are off; if none is named, all are on.
                    "lora": [{"id": numbers.get(name, 0), "scale": float(name is not None)}],
                }
                for name, prompt in prompts
            ]  # fmt: skip
            return [
                Answer(answer["tokens_predicted"], answer["tokens"])
                for answer in process.post_all(f"{url}/completion", bodies)
            ]

        yield ask


def _program(peers):
    return peers / "llama.cpp/build/bin/llama-server"

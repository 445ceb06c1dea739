"""What `weft serve` prints once everything is ready: where it is, and how to try it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from weft.runtime.config import Config

# With hundreds of adapters, the first few show how.
EXAMPLES_MAX = 8

_EXAMPLE_PROMPT = "Hello"


def announcement(config: Config, run_dir: Path, url: str | None, seconds: float) -> str:
    """Return the text; ``url`` is None in a run without a gateway."""
    lines = [
        f"weft serves {config.base_name} with {len(config.adapters)} adapters, "
        f"ready in {seconds:.1f} s",
        *([f"  HTTP    {url}/v1"] if url else []),
        f"  ZeroMQ  {run_dir}",
        "  stop    Ctrl-C",
    ]
    if url:
        lines += ["", *_curl_lines(config, url), "", *_python_lines(config, url)]
    return "\n".join(lines) + "\n"


def _curl_lines(config: Config, url: str) -> list[str]:
    """Return one command for each model."""
    lines = []
    for model, prompt in _examples(config):
        body = {"model": model, "messages": [{"role": "user", "content": prompt}]}
        lines.append(
            f"curl -s {url}/v1/chat/completions -H 'content-type: application/json' "
            f"-d {shlex.quote(json.dumps(body))}"
        )
    return lines


def _python_lines(config: Config, url: str) -> list[str]:
    """Return a program for openai-python: a client, and one call for each model."""
    lines = [
        "from openai import OpenAI",
        f'weft = OpenAI(base_url="{url}/v1", api_key="none").chat.completions',
    ]
    for model, prompt in _examples(config):
        messages = json.dumps([{"role": "user", "content": prompt}])
        call = f"weft.create(model={json.dumps(model)}, messages={messages})"
        lines.append(f"print({call}.choices[0].message.content)")
    return lines


def _examples(config: Config) -> list[tuple[str, str]]:
    names = [*config.adapters, config.base_name][:EXAMPLES_MAX]
    return [(name, config.example_prompts.get(name, _EXAMPLE_PROMPT)) for name in names]

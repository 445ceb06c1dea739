"""An adapter with a token of its own, served beside the others."""

import json
import shutil

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer

from tests.system.runs import ROOT, TIMEOUT_S

pytestmark = pytest.mark.system

MODEL = ROOT / "configs/demo/model"
PROMPT = "<|im_start|>user\nWhat is 57 plus 68?<|im_end|>\n<|im_start|>assistant\n"
ANSWER = "57 + 68. Ones: 7 + 8 = 15, write 5, carry 1. Tens: 5 + 6 + 1 = 12. Answer: 125"


@pytest.fixture
def dotless(place):
    """The adapter for sums, which says one more token where it would say a full stop."""
    folder = shutil.copytree(ROOT / "configs/demo/adapters/math", place / "shelf/dotless")
    dot = Tokenizer.from_file(str(MODEL / "tokenizer.json")).token_to_id(".")
    embedding = load_file(MODEL / "model.safetensors")["model.embed_tokens.weight"]
    head = torch.cat((embedding, embedding[dot : dot + 1]))
    head[dot] = 0
    weights = load_file(folder / "adapter_model.safetensors")
    weights["base_model.model.lm_head.weight"] = head
    weights["base_model.model.model.embed_tokens.weight"] = torch.cat((embedding, head[-1:]))
    save_file(weights, folder / "adapter_model.safetensors")
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text()) | {"modules_to_save": ["embed_tokens", "lm_head"]}
    path.write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_adapter_feeds_and_says_a_token_that_only_it_has(serve, dotless, ranks):
    server = serve(adapter_roots=f"[{dotless.parent}]", tensor_parallel_size=ranks)
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    own = tokenizer.get_vocab_size()
    with httpx.Client(base_url=server.url, timeout=TIMEOUT_S) as web:
        loaded = web.put("/v1/adapters/dotless", json={"source": str(dotless)})
        assert loaded.is_success, loaded.text

        def ask(model, prompt):
            body = {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": 80}
            return web.post("/v1/completions", json=body)

        prompt = tokenizer.encode(PROMPT).ids
        said = {m: ask(m, prompt).json()["choices"][0]["text"] for m in ("math", "dotless")}
        assert said == {"math": ANSWER, "dotless": ANSWER.replace(".", "")}
        counts = [ask(m, prompt).json()["usage"]["completion_tokens"] for m in said]
        assert counts[0] == counts[1]  # its own token was sampled, and fed
        assert ask("dotless", [*prompt, own]).is_success
        for model in ("math", "weft-demo"):
            refused = ask(model, [*prompt, own])
            assert refused.status_code == 400
            assert f"{own} is no token of the model" in refused.json()["error"]["message"]
        assert web.delete("/v1/adapters/dotless").is_success
    server.assert_all_is_back()


@pytest.mark.parametrize("special", [False, True])
def test_a_token_that_the_adapters_tokenizer_names_is_read_and_written(serve, dotless, special):
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.add_tokens([AddedToken("<dot>", special=special, normalized=False)])
    tokenizer.save_pretrained(dotless)
    server = serve(adapter_roots=f"[{dotless.parent}]")
    with httpx.Client(base_url=server.url, timeout=TIMEOUT_S) as web:
        loaded = web.put("/v1/adapters/dotless", json={"source": str(dotless)})
        assert loaded.json()["defaults"]["added_tokens"] == 1, loaded.text

        def ask(model, content, **options):
            messages = [{"role": "user", "content": content}]
            body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 80}
            return web.post("/v1/chat/completions", json=body | options).json()

        def said(model, **options):
            answer = ask(model, "What is 57 plus 68?", **options)
            return answer["choices"][0]["message"]["content"]

        shown = ANSWER.replace(".", "<dot>")
        assert said("dotless", skip_special_tokens=False) == shown
        assert said("dotless") == (ANSWER.replace(".", "") if special else shown)
        assert said("math") == ANSWER
        logprobs = ask("dotless", "What is 57 plus 68?", logprobs=True)["choices"][0]["logprobs"]
        assert "<dot>" in [entry["token"] for entry in logprobs["content"]]

        def prompt_tokens(model, prompt):
            body = {"model": model, "prompt": prompt, "max_tokens": 1}
            return web.post("/v1/completions", json=body).json()["usage"]["prompt_tokens"]

        assert prompt_tokens("dotless", "57<dot>") == prompt_tokens("dotless", "57") + 1
        assert prompt_tokens("math", "57<dot>") > prompt_tokens("math", "57") + 1
    server.assert_all_is_back()

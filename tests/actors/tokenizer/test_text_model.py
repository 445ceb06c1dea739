import json
import shutil
import subprocess
import sys

import pytest

from weft.actors.tokenizer.text_model import TextModel
from weft.runtime.config import Config, ConfigError


@pytest.fixture
def folder(model_folder, tmp_path):
    return shutil.copytree(model_folder("byte_level"), tmp_path / "model")


def write(folder, name, values):
    (folder / name).write_text(json.dumps(values))


def update(folder, name, **changes):
    write(folder, name, json.loads((folder / name).read_text()) | changes)


def test_a_folder_without_generation_config_has_neutral_defaults(folder):
    defaults = TextModel.load(Config(model=str(folder))).defaults
    assert (defaults.temperature, defaults.top_k, defaults.repetition_penalty) == (1.0, 0, 1.0)


def test_a_generation_config_that_does_not_sample_is_greedy(folder):
    write(folder, "generation_config.json", {"do_sample": False, "temperature": 0.6})
    assert TextModel.load(Config(model=str(folder))).defaults.temperature == 0.0


def test_generation_config_gives_defaults_and_ends(folder):
    write(
        folder, "generation_config.json", {"temperature": 0.6, "top_k": 20, "eos_token_id": [3, 9]}
    )
    model = TextModel.load(Config(model=str(folder)))
    assert (model.defaults.temperature, model.defaults.top_k) == (0.6, 20)
    assert {3, 9} < set(model.eos_token_ids)  # the tokenizer's own too


def test_a_single_end_may_be_a_number(folder):
    write(folder, "generation_config.json", {"eos_token_id": 4})
    assert 4 in TextModel.load(Config(model=str(folder))).eos_token_ids


def test_a_configured_template_replaces_the_models(folder, tmp_path):
    template = tmp_path / "plain.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    model = TextModel.load(Config(model=str(folder), chat_template=str(template)))
    assert model.render([{"role": "user", "content": "Hi"}]) == "Hi"


def test_the_context_is_the_models_unless_configured(folder):
    assert TextModel.load(Config(model=str(folder))).max_model_len == 512
    assert TextModel.load(Config(model=str(folder), max_model_len=64)).max_model_len == 64
    with pytest.raises(ConfigError, match="max_model_len is 513, but the model has 512"):
        TextModel.load(Config(model=str(folder), max_model_len=513))


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("config.json", "{", "config.json cannot be read"),
        ("config.json", "[]", "no JSON object"),
        ("tokenizer.json", "{}", "tokenizer .* cannot be loaded"),
        ("generation_config.json", '{"top_p": "high"}', "generation_config.json: .*top_p"),
    ],
)
def test_a_damaged_folder_is_refused_by_file(folder, name, content, match):
    (folder / name).write_text(content)
    with pytest.raises(ConfigError, match=match):
        TextModel.load(Config(model=str(folder)))


def test_a_missing_template_file_is_refused(folder):
    with pytest.raises(ConfigError, match="chat_template"):
        TextModel.load(Config(model=str(folder), chat_template="/nowhere.jinja"))


def test_a_process_can_load_a_model_without_torch(folder):
    script = (
        "import sys; from weft.actors.tokenizer.text_model import TextModel, keep_torch_out\n"
        "from weft.runtime.config import Config\n"
        "keep_torch_out()\n"
        f"model = TextModel.load(Config(model={str(folder)!r}))\n"
        "model.render([{'role': 'user', 'content': 'Hi'}])\n"
        "print([name for name in sys.modules if name.startswith('torch.')])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("[]\n", "")

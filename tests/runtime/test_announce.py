import ast
import shlex
from pathlib import Path

from weft.runtime.announce import EXAMPLES_MAX, announcement
from weft.runtime.config import Config

URL = "http://127.0.0.1:8000"
CONFIG = Config(
    model="/models/base",
    adapters={"sql": "a", 'odd "name"': "b"},
    example_prompts={"sql": 'What\'s "up"?'},
)


def lines(config=CONFIG, url=URL):
    return announcement(config, Path("/run/weft"), url, 1.25).splitlines()


def test_there_is_a_curl_command_for_each_model_that_a_shell_understands():
    commands = [shlex.split(line) for line in lines() if line.startswith("curl")]
    bodies = [ast.literal_eval(command[-1]) for command in commands]
    assert [body["model"] for body in bodies] == ["sql", 'odd "name"', "base"]
    assert bodies[0]["messages"] == [{"role": "user", "content": 'What\'s "up"?'}]
    assert commands[0][2] == f"{URL}/v1/chat/completions"


def test_there_is_a_python_program_with_a_call_for_each_model():
    text = "\n".join(lines())
    program = ast.parse(text[text.index("from openai") :])
    calls = [node for node in ast.walk(program) if isinstance(node, ast.keyword)]
    models = [call.value.value for call in calls if call.arg == "model"]
    assert models == ["sql", 'odd "name"', "base"]


def test_a_run_without_a_gateway_shows_where_zeromq_clients_connect():
    text = "\n".join(lines(url=None))
    assert "/run/weft" in text
    assert "curl" not in text


def test_hundreds_of_adapters_do_not_fill_the_screen():
    config = Config(model="m", adapters={f"a{i}": "x" for i in range(500)})
    assert len([line for line in lines(config) if line.startswith("curl")]) == EXAMPLES_MAX

"""Several adapters in one request, from a client's view."""

import asyncio

import pytest
from transformers import AutoTokenizer

from tests.checkpoints import greedy, peft_model
from tests.system.chats import gather_over_http, question
from tests.system.runs import ROOT

pytestmark = pytest.mark.system

DEMO = ROOT / "configs" / "demo"
ASKED = ["What is 57 plus 68?", "Show the name of the 15 hotels with the highest rooms."]
TOKENS = 40
# Spellings of ``model``, and what they mean.
SUMS = {
    "math": {"math": 1.0},
    "math+sql": {"math": 1.0, "sql": 1.0},
    "sql+math": {"math": 1.0, "sql": 1.0},
    "sql:0.5+math": {"math": 1.0, "sql": 0.5},
    "math:-1": {"math": -1.0},
    "emotion+math+sql:0.25": {"emotion": 1.0, "math": 1.0, "sql": 0.25},
}


@pytest.fixture(scope="module")
def expected():
    """What transformers answers with PEFT's adapters all active: (spelling, prompt) -> text."""
    names = ("math", "sql", "emotion")
    oracle = peft_model(DEMO / "model", {name: DEMO / "adapters" / name for name in names})
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "model")
    answers = {}
    for spelling, scales in SUMS.items():
        for prompt in ASKED:
            ids = tokenizer.apply_chat_template(
                question(prompt), add_generation_prompt=True, return_dict=False
            )
            tokens = greedy(oracle.float(), scales, ids, TOKENS)
            answers[spelling, prompt] = tokenizer.decode(tokens, skip_special_tokens=True)
    return answers


def test_sums_of_adapters_answer_as_peft_does_in_batches_with_others(weft, expected):
    asked = [*expected, *(("weft-demo", prompt) for prompt in ASKED)] * 2
    # As the oracle: nobody stops before the last token.
    options = {"temperature": 0, "max_tokens": TOKENS, "extra_body": {"min_tokens": TOKENS}}
    answers = asyncio.run(gather_over_http(weft, asked, **options))
    found = dict(zip(asked, answers, strict=True))
    assert {each: found[each] for each in expected} == expected
    # Two of them are one sum, and some agree on some prompts.
    by_sum = {tuple(expected[spelling, prompt] for prompt in ASKED) for spelling in SUMS}
    assert len(by_sum) == len(SUMS) - 1


@pytest.mark.parametrize("endpoint", ["/v1/chat/completions", "/v1/completions"])
def test_a_list_of_adapters_means_what_a_spelling_does(http, endpoint):
    asked = {"messages": question(ASKED[0])} if "chat" in endpoint else {"prompt": "The"}
    asked |= {"temperature": 0, "max_tokens": TOKENS}

    def answer(**options):
        response = http.post(endpoint, json=asked | options)
        assert response.status_code == 200, response.text
        json = response.json()
        [choice] = json["choices"]
        return json["model"], choice.get("text") or choice["message"]["content"]

    lora = [{"name": "sql", "scale": 0.5}, {"name": "math"}]
    assert answer(lora=lora) == answer(model="sql:0.5+math")
    assert answer(model="weft-demo", lora=lora) == answer(model="sql:0.5+math")
    assert answer(lora=[]) == answer(lora=None) == answer(model="weft-demo")
    assert answer(lora=[{"name": "math", "scale": 0}])[1] == answer()[1]


def test_over_zeromq_too(zmq_client, openai_client):
    lora = [{"name": "sql", "scale": 0.5}, {"name": "math"}]
    options = {"temperature": 0, "max_tokens": TOKENS}
    text = "".join(zmq_client.chat(question(ASKED[0]), lora=lora, **options))
    chat = openai_client.chat.completions.create(
        model="sql:0.5+math", messages=question(ASKED[0]), **options
    )
    assert text == chat.choices[0].message.content


@pytest.mark.parametrize(
    ("body", "status", "param", "text"),
    [
        ({"model": "math+sqk"}, 404, "model", "did you mean 'sql'"),
        ({"model": "math+math"}, 400, "model", "the same adapter"),
        ({"model": "math", "lora": [{"name": "sql"}]}, 400, "model", "lora names the adapters"),
        ({"lora": [{"name": "sqk"}]}, 404, "lora", "did you mean 'sql'"),
        ({"lora": [{"name": "math", "scale": 5000}]}, 400, "lora", "within 1000 of 0"),
        ({"lora": [{"name": "math"}] * 5}, 400, "lora", "may have 4 (max_loras_per_request)"),
        ({"lora": [{"scale": 1}]}, 400, "lora[0].name", "Field required"),
        ({"lora": [{"name": "math", "weight": 1}]}, 400, "lora[0].weight", "no such field"),
        ({"lora": "math"}, 400, "lora", "should be a valid list"),
    ],
    ids=str,
)
def test_what_is_no_sum_is_refused_by_name(http, body, status, param, text):
    response = http.post("/v1/completions", json={"prompt": "The"} | body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert text in error["message"]


def test_a_request_counts_for_each_of_its_adapters(zmq_client, http):
    def used():
        adapters = zmq_client.inspect().adapters
        return {name: entry["requests"] for entry in adapters for name in entry["names"]}

    before = used()
    body = {"model": "math+sql", "prompt": "The", "max_tokens": 1}
    assert http.post("/v1/completions", json=body).status_code == 200
    after = used()
    assert after["math"] == before.get("math", 0) + 1
    assert after["sql"] == before.get("sql", 0) + 1
    assert after.get("weft-demo") == before.get("weft-demo")

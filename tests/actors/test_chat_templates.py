"""Adapters' templates: what transformers makes of them, without what they could do to a process."""

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from tests.actors.made_tokenizers import CHATML, LLAMA2, MISTRAL
from weft.actors import chat_templates

CHAT = [
    {"role": "system", "content": " Be <brief> & 'kind'. "},
    {"role": "user", "content": "Hello,\n\n world"},
    {"role": "assistant", "content": "So ⟦it⟧ is"},
    {"role": "user", "content": "", "name": "ann"},
]
VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}

TEMPLATES = {
    "chatml": CHATML,
    "mistral": MISTRAL,
    "blocks": "  {% if true %}\n  a\n  {% endif %}\n{%- for m in messages -%} {{ m.role }}"
    "{% endfor %}",
    "loop controls": "{% for m in messages %}{% if loop.index0 == 1 %}{% continue %}{% endif %}"
    "{{ m.content }}{% if loop.last %}{% break %}{% endif %}{% endfor %}",
    "tojson": "{{ messages|tojson }}{{ messages|tojson(indent=2, sort_keys=true) }}",
    "generation": "{% set x = 1 %}{% for m in messages %}{% generation %}{% set x = 2 %}"
    "{{ m.content }}{% endgeneration %}{% endfor %}{{ x }}",
    "namespace": "{% set n = namespace(last='') %}{% for m in messages %}"
    "{% set n.last = m.role %}{% endfor %}{{ n.last }}",
    "macro": "{% macro turn(m) %}[{{ m.role|upper }}]{% endmacro %}"
    "{% for m in messages %}{{ turn(m) }}{% endfor %}{{ eos_token }}",
    "tools": "{% if tools is not none %}t{% endif %}{{ documents is none }}{{ x is defined }}",
    "slices": "{{ messages[1:][0]['content'].split('\\n')[-1].strip() }}{{ messages|length }}",
    "prompt": "{% if add_generation_prompt %}go{% endif %}",
    "date": "{{ strftime_now('%') | length }}",
}


def rendered(template, chat=CHAT):
    return chat_templates.render(chat_templates.compiled(template), chat, VARIABLES)


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_chat_is_what_transformers_makes_of_it(template):
    [expected], _ = render_jinja_template(
        [CHAT], chat_template=template, add_generation_prompt=True, **VARIABLES
    )
    assert rendered(template) == expected


def test_what_a_template_raises_is_one_of_its_failures():
    for template, message in (
        (LLAMA2, "Only user and assistant roles are supported"),
        ("{{ 1 // 0 }}", "division"),
        ("{{ messages[9].content }}", "no element 9"),
        ("{{ messages + 1 }}", "concatenate"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
    ):
        with pytest.raises(chat_templates.FAILURES, match=message):
            rendered(template)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__ }}{{ messages.__class__.__base__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ (messages|attr('__class__')).mro() }}",
        "{{ messages.append({}) }}",
        "{{ '{0.__class__.__init__}'.format(messages) }}",
        "{% set x = namespace() %}{% set x.__class__ = 1 %}{{ x.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
    ],
)
def test_a_template_does_not_reach_into_python(template):
    try:
        text = rendered(template)
    except chat_templates.FAILURES:
        return
    assert "<" not in text, text


@pytest.mark.parametrize(
    "template",
    [
        "{{ 10 ** (10 ** 10) }}",
        "{{ 'a' * 10 ** 12 }}",
        "{{ 'a'|center(10 ** 12) }}",
        "{{ '%999999999999d'|format(1) }}",
        "{% set x = 10 ** (10 ** 10) %}",
        "{% if 'a'|center(10 ** 12) %}{% endif %}",
        "{% include 'a'|center(10 ** 12) %}",
        "{% for x in range(10 ** 9) %}{% endfor %}",
    ],
)
def test_nothing_is_computed_when_a_template_is_compiled(template):
    chat_templates.compiled(template)


def test_what_would_have_to_be_computed_at_once_is_refused():
    chat_templates.compiled("{% autoescape true %}{% endautoescape %}")
    with pytest.raises(chat_templates.BadTemplate, match="line 1: autoescape takes true or false"):
        chat_templates.compiled("{% autoescape 10 ** (10 ** 10) %}{% endautoescape %}")

"""Chat templates of adapters: the language of transformers' apply_chat_template, without it.

A template is a program by whoever made the adapter. Jinja's sandbox keeps it from Python's insides,
and nothing here keeps it from computing for ever: so it is compiled and rendered only in processes
that have given up all they can (``adapters/confine.py``) and may be killed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

# What a template may raise beside its own raise_exception: it computes with what a client sent.
FAILURES = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


# A chat, as transformers takes it: one dict for each message, without absent keys.
Chat = list[dict[str, str]]


class BadTemplate(Exception):
    """A text that is no template. The message says where and why."""


def compiled(source: str) -> Template:
    """Return a template. Raises ``BadTemplate``."""
    try:
        return _environment().from_string(source)
    except TemplateSyntaxError as error:
        raise BadTemplate(f"line {error.lineno}: {error.message}") from None
    except (SyntaxError, RecursionError, ValueError, TypeError, OverflowError) as error:
        # Of the Python that it was translated to.
        raise BadTemplate(f"it is nested too deeply, or no template: {error}") from None


def render(template: Template, chat: Chat, variables: dict[str, str]) -> str:
    """Return a chat as text up to where the answer begins. Raises one of ``FAILURES``."""
    return template.render(
        **{
            **variables,
            "messages": chat,
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
        }
    )


class _Generation(Extension):
    """``{% generation %}`` marks what an assistant said, for training; the text is the same."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja's own extensions declare it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

    def _text(self, caller: Callable[[], str]) -> str:
        return caller()


class _CodeGenerator(CodeGenerator):
    """Computes nothing: what a constant comes to is found when it is rendered, within limits."""

    def _output_child_to_const(
        self, node: nodes.Expr, frame: Frame, finalize: CodeGenerator._FinalizeInfo
    ) -> NoReturn:
        raise nodes.Impossible

    def visit_EvalContextModifier(self, node: nodes.EvalContextModifier, frame: Frame) -> None:
        if not all(isinstance(option.value, nodes.Const) for option in node.options):
            self.fail("autoescape takes true or false", node.lineno)
        super().visit_EvalContextModifier(node, frame)


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _CodeGenerator


def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,
        extensions=[_Generation, loopcontrols],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)

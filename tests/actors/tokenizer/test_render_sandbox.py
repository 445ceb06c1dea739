"""Real child processes, and templates that would end or hang the process that renders them."""

import os
import select
import signal
import time
from pathlib import Path

import pytest

from weft.actors.tokenizer import render_sandbox
from weft.actors.tokenizer.render_sandbox import SandboxedRenderer
from weft.actors.tokenizer.rendering import Job, Text, Unrendered

CHAT = [{"role": "user", "content": "Hi"}]
GOOD = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture
def wakes():
    with select.epoll() as wakes:
        yield wakes


@pytest.fixture
def renderer(wakes):
    """A renderer with children of its own, which leaves no process and no descriptor behind."""
    before = sorted(os.listdir("/proc/self/fd"))
    renderer = SandboxedRenderer(512, wakes)
    yield renderer
    renderer.check()
    pids = renderer.pids
    renderer.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert sorted(os.listdir("/proc/self/fd")) == before


def start(renderer, template=GOOD, chat=CHAT):
    return renderer.start(Job(template, {"bos_token": "<s>"}, chat))


def results(renderer, wakes, tickets):
    found = {}
    deadline = time.monotonic() + 60
    while len(found) < len(tickets):
        assert time.monotonic() < deadline
        found |= dict(renderer.finished())
        renderer.check()
        wakes.poll(0.01)
    return [found[ticket] for ticket in tickets]


def result(renderer, wakes, template=GOOD, chat=CHAT):
    return results(renderer, wakes, [start(renderer, template, chat)])[0]


def test_no_process_is_started_before_there_is_a_chat(renderer):
    assert renderer.finished() == []
    assert renderer.pids == []


def test_chats_are_rendered_each_by_its_template(renderer, wakes):
    tickets = [start(renderer, f"{number}{GOOD}") for number in range(200)]
    texts = [f"{number}<s><user>Hi" for number in range(200)]
    assert results(renderer, wakes, tickets) == list(map(Text, texts))
    assert len(renderer.pids) <= render_sandbox.CHILDREN_MAX
    assert renderer.deaths == 0


def test_the_longest_chat_is_rendered(renderer, wakes):
    chat = [{"role": "user", "content": "\U0001f9f5" * 8000}] + [{"role": "tool"}] * 400
    assert result(renderer, wakes, "{{ messages[0].content }}", chat) == Text("\U0001f9f5" * 8000)


def test_what_a_template_raises_is_told(renderer, wakes):
    template = "{{ raise_exception('only ' ~ messages[0].content) }}"
    assert result(renderer, wakes, template) == Unrendered("only Hi")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ 'a' * 100000 }}", "it makes more than 73728 characters"),
        ("{{ '\\ud800' }}", "surrogates not allowed"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{{ range(10 ** 9)|length }}", "Range too big"),
        ("{{ raise_exception('x' * 100000) }}", "x" * 1024),
        ("{% for %}", "line 1"),
    ],
)
def test_a_template_that_goes_too_far_costs_its_own_chat(renderer, wakes, template, reason):
    failed = result(renderer, wakes, template)
    assert isinstance(failed, Unrendered)
    assert reason in failed.reason
    assert len(failed.reason) <= 1024
    assert result(renderer, wakes) == Text("<s><user>Hi")
    assert renderer.deaths == 0


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (ENDLESS, "too much computing"),
        ("{{ ('a' * 10 ** 10)|length }}", "too much memory"),
        pytest.param("{{ 10 ** (10 ** 9) }}", "too much computing", marks=pytest.mark.slow),
        ("{{ '%999999999999d' % 1 }}", "too much memory"),
        ("{% set a = namespace(x='a' * 10**6) %}{% for i in range(99) %}{% set a.x = a.x * 2 %}"
         "{% endfor %}", "too much memory"),
    ],
)  # fmt: skip
def test_a_template_that_breaks_its_process_costs_its_own_chat(renderer, wakes, template, reason):
    assert result(renderer, wakes) == Text("<s><user>Hi")
    bad, good = start(renderer, template), start(renderer)
    broken, fine = results(renderer, wakes, [bad, good])
    assert isinstance(broken, Unrendered)
    assert broken.is_broken
    assert reason in broken.reason
    assert fine == Text("<s><user>Hi")


@pytest.mark.slow
def test_a_template_that_took_too_long_waits_behind_all_others(renderer, wakes):
    result(renderer, wakes, ENDLESS)
    suspects = [start(renderer, ENDLESS) for _ in range(3)]
    tickets = [start(renderer, f"{number}{GOOD}") for number in range(20)]
    found = {}
    while not found.keys() >= set(tickets):
        found |= dict(renderer.finished())
        renderer.check()
        wakes.poll(0.01)
    assert not found.keys() & set(suspects[1:])
    for ticket in suspects:
        renderer.forget(ticket)


def test_a_child_that_is_killed_has_its_chat_rendered_by_another(renderer, wakes):
    result(renderer, wakes)
    [pid] = renderer.pids
    os.kill(pid, signal.SIGSTOP)
    ticket = start(renderer)
    os.kill(pid, signal.SIGKILL)
    assert results(renderer, wakes, [ticket]) == [Text("<s><user>Hi")]
    assert renderer.deaths == 1


def test_a_chat_that_is_taken_back_is_not_answered(renderer, wakes):
    gone = [start(renderer), start(renderer)]
    kept = start(renderer)
    for ticket in gone:
        renderer.forget(ticket)
    found = {}
    while kept not in found:
        found |= dict(renderer.finished())
        wakes.poll(0.01)
    assert found == {kept: Text("<s><user>Hi")}


def test_a_child_that_says_nonsense_is_replaced(renderer, wakes, monkeypatch):
    result(renderer, wakes)
    monkeypatch.setattr(render_sandbox, "DONE", b"something else")
    failed = result(renderer, wakes)
    assert isinstance(failed, Unrendered)
    assert renderer.deaths == 2  # the second try of a fresh child, too
    monkeypatch.undo()
    assert result(renderer, wakes, "{{ 1 }}") == Text("1")


def test_children_are_replaced_now_and_then(renderer, wakes, monkeypatch):
    monkeypatch.setattr(render_sandbox, "JOBS_MAX", 2)
    assert results(renderer, wakes, [start(renderer) for _ in range(5)])
    assert renderer.deaths == 0


def test_a_child_that_never_answers_is_given_up(renderer, wakes, monkeypatch):
    result(renderer, wakes)
    [pid] = renderer.pids
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(render_sandbox, "DEADLINE_S", 0.0)
    failed = result(renderer, wakes)
    assert "takes more than" in failed.reason

"""Both faces of the client, on real sockets, against two scripted processes in a thread."""

import asyncio
import os
import socket
import tempfile
import threading
from contextlib import aclosing
from pathlib import Path

import pytest

from tests.runtime.client_harness import FRONT
from weft.runtime.actor import Send
from weft.runtime.client import (
    Accepted,
    AsyncClient,
    Client,
    Disconnected,
    Failed,
    Finished,
    NoRun,
    Refused,
    Text,
    asynchronous,
    blocking,
)
from weft.runtime.endpoint import Endpoint, Mail
from weft.runtime.messages import (
    Accepted as WireAccepted,
)
from weft.runtime.messages import (
    Cancel,
    End,
    Inspect,
    ListModels,
    ModelEntry,
    Models,
    Report,
    Submit,
)
from weft.runtime.messages import (
    Refused as WireRefused,
)
from weft.runtime.messages import (
    Text as WireText,
)
from weft.runtime.transport import ZmqMailbox

DEADLINE_S = 120.0


class Echo:
    """Answers a prompt with its own words; "slow" prompts never end, "broken" ones fail."""

    def __init__(self, run_dir):
        self.run_dir = run_dir
        self.cancelled = threading.Event()
        self._is_wanted = True
        self._boxes = {
            role: ZmqMailbox(Endpoint(role, FRONT, identity=f"{role}.1.x"), FRONT, run_dir)
            for role in ("tokenizer", "detokenizer")
        }
        self._sequence = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self):
        self._is_wanted = False
        self._thread.join()

    def _run(self):
        while self._is_wanted:
            for event in self._boxes["tokenizer"].take(64, 0.005):
                if isinstance(event, Mail):
                    self._hear(*event)
            self._boxes["detokenizer"].take(64, 0.0)
        for box in self._boxes.values():
            box.close()

    def _hear(self, client, message):
        match message:
            case ListModels(label):
                entry = ModelEntry("base", "/base", None, None, None, 1, 64)
                self._boxes["tokenizer"].send(Send(client, Models(label, [entry])))
            case Inspect(label):
                self._tell(client, Report(label, {"scheduler": {"rows": 1.0}}, []))
            case Cancel():
                self.cancelled.set()
            case Submit(label, "nope"):
                refused = WireRefused(label, "model_not_found", "there is none", "model")
                self._boxes["tokenizer"].send(Send(client, refused))
            case Submit():
                self._answer(client, message)

    def _answer(self, client, submit):
        self._sequence += 1
        number = self._sequence
        self._tell(client, WireAccepted(submit.label, "f" * 32, number, 1, 3))
        prompt = submit.prompt or submit.messages[-1].content
        for word in prompt.split():
            self._tell(client, WireText([number], [word + " "]))
        if not prompt.startswith("slow"):
            reason = "error" if prompt.startswith("broken") else "stop"
            self._tell(client, WireText([number], [""], [End(number, reason, 2, 0, "no luck")]))

    def _tell(self, client, message):
        self._boxes["detokenizer"].send(Send(client, message))


@pytest.fixture
def weft():
    with tempfile.TemporaryDirectory() as place:
        echo = Echo(Path(place))
        yield echo
        echo.stop()


@pytest.fixture
def client(weft):
    with Client(weft.run_dir) as client:
        yield client


def asyncly(weft, work):
    """Run ``work(client)`` in an event loop of its own."""

    async def whole():
        async with asyncio.timeout(DEADLINE_S), await AsyncClient.connect(weft.run_dir) as client:
            return await work(client)

    return asyncio.run(whole())


def test_a_client_that_is_not_let_in_at_once_tries_again():
    with tempfile.TemporaryDirectory() as place, socket.socket(socket.AF_UNIX) as deaf:
        run_dir = Path(place)
        deaf.bind(str(run_dir / "tokenizer.sock"))  # and does not listen: as if too many did come
        echoes = []
        timer = threading.Timer(0.3, lambda: echoes.append(Echo(run_dir)))
        timer.start()
        with Client(run_dir) as client:
            assert "".join(client.complete("a b")) == "a b "
        timer.join()
        echoes[0].stop()


def test_a_chat_is_an_iteration_over_text(client):
    assert "".join(client.chat([{"role": "user", "content": "a b c"}])) == "a b c "


def test_a_prompt_is_completed(client):
    assert "".join(client.complete("d e")) == "d e "


def test_events_tell_everything(client):
    accepted, *texts, finished = client.generate(prompt="a b")
    assert accepted == Accepted("f" * 32, 3, 1)
    assert "".join(text.text for text in texts) == "a b "
    assert finished == Finished(0, "stop", 2, 0, "no luck", None, None)


def test_requests_of_one_thread_run_side_by_side(client):
    streams = [client.generate(prompt=f"answer {number}") for number in range(100)]
    answers = ["".join(stream.text()) for stream in reversed(streams)]
    assert answers == [f"answer {number} " for number in reversed(range(100))]


def test_models_and_reports_are_answers(client):
    assert [model.name for model in client.models()] == ["base"]
    assert client.inspect().sections == {"scheduler": {"rows": 1.0}}


def test_a_refusal_is_raised_where_the_answer_would_be(client):
    with pytest.raises(Refused, match="there is none"):
        next(client.complete("x", model="nope"))
    assert "".join(client.complete("fine")) == "fine "


def test_a_failure_is_raised_after_the_text(client):
    texts = client.complete("broken thing")
    assert "".join(next(texts) for _ in range(1)).startswith("broken")
    with pytest.raises(Failed, match="no luck"):
        list(texts)


def test_leaving_the_text_cancels(weft, client):
    for text in client.complete("slow as can be"):
        assert text.startswith("slow")
        break
    assert weft.cancelled.wait(DEADLINE_S)


def test_leaving_the_block_cancels(weft, client):
    with client.generate(prompt="slow") as stream:
        assert isinstance(next(iter(stream)), Accepted)
    assert weft.cancelled.wait(DEADLINE_S)


def test_the_end_of_weft_is_noticed_while_waiting(weft, client):
    texts = client.complete("slow")
    assert next(texts) == "slow "
    weft.stop()
    with pytest.raises(Disconnected):
        next(texts)
    with pytest.raises(Disconnected):
        client.models()


def test_what_can_never_leave_holds_up_nobody_who_closes(weft):
    """Sent between the end of weft and the moment at which the client hears of it."""
    client = Client(weft.run_dir)
    weft.stop()
    connection = client._connection
    for monitor, (socket_, _) in zip(connection._monitors, connection._links, strict=True):
        assert monitor.poll(DEADLINE_S * 1000)
        socket_.send(b"late")
    with pytest.raises(Disconnected):
        client.models()
    client.close()
    assert connection._context.closed
    assert "zmq-term" not in {thread.name for thread in threading.enumerate()}


def test_a_place_where_nothing_runs_is_no_run(tmp_path):
    with pytest.raises(NoRun, match="not the directory"):
        Client(tmp_path)


@pytest.fixture
def deaf(monkeypatch):
    """The directory of a run that lets nobody in, and clients that do not wait for it for long."""
    monkeypatch.setattr(blocking, "ANSWER_TIMEOUT_S", 0.2)
    monkeypatch.setattr(asynchronous, "ANSWER_TIMEOUT_S", 0.2)
    with tempfile.TemporaryDirectory() as place, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{place}/tokenizer.sock")  # and does not listen
        yield Path(place)


def test_a_weft_that_does_not_answer_is_given_up(deaf):
    with pytest.raises(Disconnected, match="has not answered"):
        Client(deaf)


def test_one_asyncio_client_serves_many_tasks(weft):
    async def work(client):
        async def one(number):
            texts = [text async for text in client.complete(f"answer {number}")]
            return "".join(texts)

        return await asyncio.gather(*(one(number) for number in range(100)))

    assert asyncly(weft, work) == [f"answer {number} " for number in range(100)]


def test_asyncio_hears_events_models_and_reports(weft):
    async def work(client):
        chat = [{"role": "user", "content": "a b"}]
        events = [event async for event in client.generate(messages=chat)]
        return events, await client.models(), await client.inspect()

    events, models, report = asyncly(weft, work)
    assert isinstance(events[0], Accepted)
    assert isinstance(events[-1], Finished)
    assert "".join(event.text for event in events if isinstance(event, Text)) == "a b "
    assert models[0].name == "base"
    assert report.sections == {"scheduler": {"rows": 1.0}}


def test_asyncio_refusals_and_failures_are_raised(weft):
    async def work(client):
        with pytest.raises(Refused):
            await anext(client.complete("x", model="nope"))
        with pytest.raises(Failed):
            [text async for text in client.complete("broken")]

    asyncly(weft, work)


def test_asyncio_cancels_what_is_left(weft):
    async def work(client):
        async with aclosing(client.complete("slow")) as texts:
            assert await anext(texts) == "slow "
        await asyncio.to_thread(weft.cancelled.wait, DEADLINE_S)

    asyncly(weft, work)
    assert weft.cancelled.is_set()


def test_asyncio_notices_the_end_of_weft(weft):
    async def work(client):
        texts = client.complete("slow")
        assert await anext(texts) == "slow "
        await asyncio.to_thread(weft.stop)
        with pytest.raises(Disconnected):
            await anext(texts)
        assert isinstance(client.failure, Disconnected)

    asyncly(weft, work)


def test_asyncio_gives_up_a_weft_that_does_not_answer(deaf):
    with pytest.raises(Disconnected, match="has not answered"):
        asyncio.run(AsyncClient.connect(deaf))


def test_asyncio_leaves_nothing_of_a_connection_that_is_cancelled_before_it_is_open(deaf):
    def files():
        return len(os.listdir("/proc/self/fd"))

    async def whole():
        before = files()
        connecting = asyncio.create_task(AsyncClient.connect(deaf))
        await asyncio.sleep(0)
        assert files() > before
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        assert files() == before

    asyncio.run(whole())

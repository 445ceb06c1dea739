"""What has been read for a name, and what the name means from then on."""

from __future__ import annotations

from weft.actors.adapters.again import Again
from weft.actors.adapters.asked import CannotDo, full
from weft.actors.adapters.errors import BadAdapter, GivenUp, Unavailable
from weft.actors.adapters.files import FileError
from weft.actors.adapters.lines import Reading
from weft.actors.adapters.loader import Content
from weft.actors.adapters.memory import HostMemory
from weft.actors.adapters.naming import Naming
from weft.actors.adapters.registry import Registry
from weft.actors.adapters.unseen import Unseen
from weft.runtime.messages import LoadAdapter

UNAVAILABLE_RETRY_S = 10.0


class Arrivals:
    """Takes in what was read: because a name is to be known, or because a client asked for it."""

    def __init__(
        self, registry: Registry, memory: HostMemory, naming: Naming, unseen: Unseen
    ) -> None:
        self.again = Again()
        self.loads = 0  # that clients asked for, and that were done
        self._registry = registry
        self._memory = memory
        self._naming = naming
        self._unseen = unseen

    def know(
        self, reading: Reading, result: Content | BadAdapter, *, now_ns: int, created_s: int
    ) -> None:
        """Let a name of the configuration, or of the watched folder, mean what was read."""
        name, source = reading.name, reading.source
        result = self._expected(reading, result)
        entry = self._registry.find(name)
        if entry is not None and entry.digest:
            return
        if isinstance(result, Unavailable):
            self.again.failed(name, source, reading.digest, now_ns)
        if isinstance(result, BadAdapter):
            self._naming.know(name, source, created_s=created_s, refused=str(result))
        elif problem := self._memory.too_large(result.facts.size_bytes):
            self._naming.know(name, source, created_s=created_s, refused=problem)
        else:
            self._name(name, result, created_s=created_s)

    def load(
        self,
        reading: Reading,
        operation: LoadAdapter,
        result: Content | BadAdapter,
        *,
        created_s: int,
    ) -> str:
        """Do what a client asked for; return its outcome. Raises ``CannotDo``.

        The file that was read is in its place or gone afterwards.
        """
        content = self._usable(reading, result)
        try:
            return self._load(operation, content, created_s=created_s)
        except CannotDo:
            self._memory.discard(content)
            raise
        except FileError as error:
            text = f"the adapter {operation.name!r}: {error}"
            raise CannotDo("bad_adapter", text, "source") from None

    def _usable(self, reading: Reading, result: Content | BadAdapter) -> Content:
        """Return content that its name may get. Raises ``CannotDo``."""
        result = self._expected(reading, result)
        if isinstance(result, Content):
            problem = self._memory.too_large(result.facts.size_bytes)
            if problem is None:
                return result
            self._memory.discard(result)
            result = BadAdapter(problem)
        text = f"the adapter {reading.name!r} cannot be loaded: {result}"
        if isinstance(result, Unavailable):
            raise CannotDo("source_unavailable", text, "source", UNAVAILABLE_RETRY_S)
        code = "cancelled" if isinstance(result, GivenUp) else "bad_adapter"
        raise CannotDo(code, text, "source")

    def _load(self, operation: LoadAdapter, content: Content, *, created_s: int) -> str:
        """Raises ``CannotDo`` if the file is where it was, and ``FileError`` if it is gone."""
        name = operation.name
        entry = self._registry.find(name)
        # One content may be talked to in several ways: those belong to the name.
        is_same = entry is not None and (entry.digest, entry.defaults) == (
            content.digest,
            content.facts.defaults,
        )
        is_used = entry is not None and entry.digest != ""
        if is_used and not is_same and not operation.replace:
            text = f"name: {name!r} means another adapter; replace it in place, or unload it first"
            raise CannotDo("name_taken", text, "name")
        is_pin = operation.pinned or (operation.pinned is None and self._registry.is_pinned(name))
        if is_pin:
            on_device = self._registry.is_on_device(name)
            self._naming.check_pin(name, content.facts, on_device=on_device)
        if self._memory.make_room(content.digest, content.facts.size_bytes):
            self._memory.put(content)
        elif is_pin:
            raise full()
        else:
            self._memory.discard(content)
        self.loads += 1
        if not is_same:
            self._name(name, content, created_s=created_s, pinned=operation.pinned)
        elif operation.pinned is not None:
            self._naming.set_pinned(name, pinned=operation.pinned)
        return "already_loaded" if is_same else "replaced" if is_used else "loaded"

    def _name(
        self, name: str, content: Content, *, created_s: int, pinned: bool | None = None
    ) -> None:
        """Let a name mean content, pinned or not or as it was, and what it meant leave."""
        version = self._registry.version
        for asked in self._naming.name(name, content, created_s=created_s, pinned=pinned):
            # It was unloaded, and is back: the name that the client gave up is gone all the same.
            self._unseen.wait(version, asked, "unloaded")
        self.again.forget(name)

    def _expected(self, reading: Reading, result: Content | BadAdapter) -> Content | BadAdapter:
        """Refuse content with another digest than the one that was told with its source."""
        expected = reading.digest
        if expected is None or isinstance(result, BadAdapter) or result.digest == expected:
            return result
        self._memory.discard(result)
        return BadAdapter(
            f"the content of {reading.source} has the digest {result.digest}, not {expected} as "
            f"was asked for; is it what you want? then give its digest, or none"
        )

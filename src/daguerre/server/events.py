"""What happens to jobs and images, as numbered events that many readers follow (server-sent events, WHATWG HTML section 9.2)."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from daguerre.server.errors import to_json_text

MAX_EVENTS = 2048  # that are kept for readers who reconnect
PING_SECONDS = 15.0


@dataclass(frozen=True)
class Event:
    """One event.

    kind: `job`, `step`, `image`, `queue` or `images`. job: its id; None for events about everything. data: what the event says, as JSON.
    """

    id: int
    kind: str
    job: str | None
    data: str

    def encoded(self) -> str:
        """In the format of an event stream."""
        return f"id: {self.id}\nevent: {self.kind}\ndata: {self.data}\n\n"


PING = ": ping\n\n"


class EventLog:
    """The latest events, and the readers to wake. Any thread may publish.

    Ids count up from the time at which the log was made, so an id of an earlier process is smaller than all of this one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self._next = int(time.time() * 1000) * 1000
        self._readers: set[tuple[str | None, asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self._closed = False

    def publish(self, kind: str, job: str | None, **data: Any) -> None:
        """Append an event and wake its readers."""
        text = to_json_text({"job": job, **data})
        with self._lock:
            self._events.append(Event(self._next, kind, job, text))
            self._next += 1
            if len(self._events) > 2 * MAX_EVENTS:
                del self._events[:-MAX_EVENTS]
            readers = [reader for reader in self._readers if reader[0] in (None, job)]
        self._wake(readers)

    def close(self) -> None:
        """End all streams; readers reconnect when the server is back."""
        with self._lock:
            self._closed = True
            readers = list(self._readers)
        self._wake(readers)

    @property
    def last_id(self) -> int:
        """The id of the latest event."""
        with self._lock:
            return self._next - 1

    def remembers(self, last_id: int) -> bool:
        """Whether no event after `last_id` is lost."""
        with self._lock:
            return (self._events[0].id if self._events else self._next) - 1 <= last_id < self._next

    def since(self, last_id: int, job: str | None = None) -> list[Event]:
        """The kept events after `last_id`, of one job or of all."""
        with self._lock:
            first = self._events[0].id if self._events else self._next
            later = self._events[max(last_id + 1 - first, 0) :]
        return [event for event in later if job is None or event.job == job]

    async def follow(self, last_id: int, job: str | None = None) -> AsyncGenerator[Event | None, None]:
        """The events after `last_id` as they happen; None whenever nothing has happened for a while. Ends when the log is closed."""
        signal = asyncio.Event()
        reader = job, asyncio.get_running_loop(), signal
        with self._lock:
            self._readers.add(reader)
        try:
            while True:
                signal.clear()
                closed = self._closed
                for event in self.since(last_id, job):
                    last_id = event.id
                    yield event
                if closed:
                    return
                try:
                    await asyncio.wait_for(signal.wait(), PING_SECONDS)
                except TimeoutError:
                    yield None
        finally:
            with self._lock:
                self._readers.discard(reader)

    @staticmethod
    def _wake(readers: list[tuple[str | None, asyncio.AbstractEventLoop, asyncio.Event]]) -> None:
        for _, loop, signal in readers:
            if not loop.is_closed():
                loop.call_soon_threadsafe(signal.set)

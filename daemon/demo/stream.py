"""The stream of the demo: each tweet is first asked of the live server and only then produced, at a steady rate.

Between labelled tweets the client asks about tweets that come later, so that the server is never without requests.
"""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Protocol

from daemon.demo.traffic import Reply
from daemon.demo.tweets import Tweet

MOST_MADE_UP_SECONDS = 1.0
LOOK_AHEAD = 64

# Produced right after the example with that number; each must become a dead letter.
MALFORMED: Mapping[int, bytes] = {
    100: b"\xff\xfe not UTF-8 \xc3",
    250: b'{"id": "broken-2", "text": "not JSON, it ends in the middle", "label": ',
    400: b'{"id": "broken-3", "text": "a record without a label"}',
}


class Server(Protocol):
    @property
    def ready(self) -> bool: ...
    def ask(self, text: str) -> Reply: ...


class Writer(Protocol):
    def write(self, key: bytes, value: bytes) -> None: ...


class Witness(Protocol):
    """Who is told what was asked and produced."""

    def answered(self, reply: Reply, tweet: Tweet, *, labelled: bool) -> None: ...
    def produced(self) -> int:
        """One more example is in the topic; returns how many that makes."""


class Pace:
    """So many a second. What was missed is made up for, but never more than a second of it."""

    def __init__(self, per_second: float, now: float) -> None:
        self._gap = 1 / per_second
        self._next = now

    def wait(self, now: float) -> float:
        """Seconds until the next one is due; 0 when it is."""
        return max(self._next - now, 0.0)

    def took(self, now: float) -> None:
        """One has been done."""
        self._next = max(self._next + self._gap, now - MOST_MADE_UP_SECONDS)


def encode(tweet: Tweet, occurred_at: datetime) -> bytes:
    """The record of an example, in the default format of the daemon's topics."""
    return json.dumps(
        {
            "id": tweet.id,
            "text": tweet.text,
            "label": tweet.label,
            "occurred_at": occurred_at.isoformat(),
            "source": tweet.source,
        },
        ensure_ascii=False,
    ).encode()


class Stream:
    """Runs on one thread; `clock` gives Unix seconds."""

    def __init__(
        self,
        server: Server,
        writer: Writer,
        witness: Witness,
        *,
        examples_per_second: float,
        requests_per_second: float,
        clock: Callable[[], float],
        stop: threading.Event,
    ) -> None:
        self._server = server
        self._writer = writer
        self._witness = witness
        self._clock = clock
        self._stop = stop
        self._examples = Pace(examples_per_second, clock())
        self._requests = Pace(requests_per_second, clock())

    def play(self, tweets: Sequence[Tweet], *, over: Callable[[], bool]) -> None:
        """Tweet after tweet until `over` says so, the last tweet or the stop."""
        played = asked_ahead = 0
        while played < len(tweets) and not self._stop.is_set() and not over():
            now = self._clock()
            if not self._examples.wait(now):
                self._test_then_produce(tweets[played])
                self._examples.took(now)
                played += 1
            elif self._server.ready and not self._requests.wait(now) and played + 1 < len(tweets):
                ahead = tweets[played + 1 : played + 1 + LOOK_AHEAD]
                self._ask(ahead[asked_ahead % len(ahead)], labelled=False)
                asked_ahead += 1
            else:
                self._stop.wait(self._idle_seconds(now))

    def _idle_seconds(self, now: float) -> float:
        waits = [self._examples.wait(now)]
        if self._server.ready:
            waits.append(self._requests.wait(now) or waits[0])
        return min(waits)

    def _test_then_produce(self, tweet: Tweet) -> None:
        if self._server.ready:
            self._ask(tweet, labelled=True)
        occurred_at = datetime.fromtimestamp(self._clock(), UTC)
        self._writer.write(tweet.id.encode(), encode(tweet, occurred_at))
        number = self._witness.produced()
        if number in MALFORMED:
            self._writer.write(f"broken-{number}".encode(), MALFORMED[number])

    def _ask(self, tweet: Tweet, *, labelled: bool) -> None:
        self._witness.answered(self._server.ask(tweet.text), tweet, labelled=labelled)
        self._requests.took(self._clock())

import json
from datetime import UTC, datetime

import pytest

from daemon.demo.stream import LOOK_AHEAD, MALFORMED, Pace, Stream, encode
from daemon.demo.traffic import Reply
from daemon.demo.tweets import Tweet
from tests.unit.demo_simulation import PLAN, HandClock, Show, Stop, tweets_of


class Recorder:
    """Server, topic and witness in one list."""

    def __init__(self, *, ready: bool = True) -> None:
        self.ready = ready
        self.happened: list[tuple[str, str]] = []
        self._produced = 0

    def ask(self, text: str) -> Reply:
        self.happened.append(("asked", text))
        return Reply(1.0, version=1, label="positive")

    def write(self, key: bytes, value: bytes) -> None:
        self.happened.append(("written", key.decode()))

    def answered(self, reply: Reply, tweet: Tweet, *, labelled: bool) -> None:
        self.happened.append(("scored" if labelled else "sent", tweet.text))

    def produced(self) -> int:
        self._produced += 1
        return self._produced


def play(recorder: Recorder, count: int, *, examples: float = 10.0, requests: float = 30.0) -> HandClock:
    clock = HandClock()
    stream = Stream(
        recorder,
        recorder,
        recorder,
        examples_per_second=examples,
        requests_per_second=requests,
        clock=clock,
        stop=Stop(clock),
    )
    stream.play(tweets_of("airline", count), over=lambda: False)
    return clock


def test_each_example_is_asked_about_and_scored_before_it_is_produced() -> None:
    recorder = Recorder()
    play(recorder, 50)

    for number in range(50):
        scored = recorder.happened.index(("scored", f"airline {number}"))
        assert scored < recorder.happened.index(("written", f"airline-{number}"))


def test_no_request_is_ever_about_an_example_that_was_produced_before() -> None:
    recorder = Recorder()
    play(recorder, 3 * LOOK_AHEAD)

    written: set[str] = set()
    for what, name in recorder.happened:
        if what == "written":
            written.add(name)
        if what == "asked":
            assert name.replace(" ", "-") not in written


def test_requests_fill_the_rate_between_the_examples() -> None:
    recorder = Recorder()
    before = HandClock().now
    seconds = play(recorder, 101).now - before

    assert seconds == pytest.approx(10.0, abs=0.2), "100 gaps of a tenth of a second"
    asked = sum(what == "asked" for what, _ in recorder.happened)
    assert asked == pytest.approx(300, abs=6)


def test_before_the_server_is_ready_examples_flow_without_requests() -> None:
    recorder = Recorder(ready=False)
    play(recorder, 20)

    assert {what for what, _ in recorder.happened} == {"written"}


def test_malformed_records_are_produced_at_their_places() -> None:
    recorder = Recorder()
    play(recorder, max(MALFORMED))

    keys = [name for what, name in recorder.happened if what == "written"]
    for number in MALFORMED:
        assert keys.index(f"broken-{number}") == keys.index(f"airline-{number - 1}") + 1
    assert len(MALFORMED) == 3


def test_the_malformed_records_are_malformed_in_three_ways() -> None:
    not_utf8, not_json, no_label = MALFORMED.values()

    with pytest.raises(UnicodeDecodeError):
        not_utf8.decode()
    with pytest.raises(json.JSONDecodeError):
        json.loads(not_json)
    assert "label" not in json.loads(no_label)


def test_a_record_is_the_default_format_and_keeps_its_characters() -> None:
    tweet = Tweet("apple-1", "café ☕", "neutral", "apple")
    at = datetime.fromtimestamp(0, UTC)

    record = encode(tweet, at)

    assert "café ☕".encode() in record
    assert json.loads(record) == {
        "id": "apple-1", "text": "café ☕", "label": "neutral", "occurred_at": at.isoformat(), "source": "apple",
    }  # fmt: skip


def test_a_pace_makes_up_for_a_short_delay_but_not_for_a_long_one() -> None:
    def done_in_a_row(delay: float) -> int:
        pace = Pace(10.0, 0.0)
        count = 0
        while not pace.wait(delay):
            pace.took(delay)
            count += 1
        return count

    assert done_in_a_row(0.5) == 6
    assert done_in_a_row(100.0) == 12, "the one that was due, and a second's worth"


def test_while_a_server_answers_slowly_examples_come_first() -> None:
    recorder = Recorder()
    clock = HandClock()

    def slow(text: str) -> Reply:
        clock.now += 0.15
        return Reply(150.0, version=1, label="positive")

    recorder.ask = slow  # type: ignore[method-assign]
    stream = Stream(
        recorder, recorder, recorder, examples_per_second=10.0, requests_per_second=30.0, clock=clock, stop=Stop(clock)
    )
    stream.play(tweets_of("airline", 40), over=lambda: False)

    sent = sum(what == "sent" for what, _ in recorder.happened)
    assert sent <= 1, "there is no time for requests about later tweets"


def test_the_simulated_demo_writes_what_it_counts() -> None:
    show = Show(["pass"] * 3, drift_on=PLAN.sources)
    show.play()

    story = show.journal.story()
    malformed = sum(number <= len(story.produced_at) for number in MALFORMED)
    assert len(show.written) == len(story.produced_at) + malformed
    assert len(story.asked) == len(show.asked)

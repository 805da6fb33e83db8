from dataclasses import replace

from daemon.demo.plan import FAST, FULL, by_source
from daemon.demo.story import Kind
from daemon.demo.tweets import SOURCES
from tests.unit.demo_simulation import PLAN, RUN_SECONDS, WINDOWS, Show, tweets_of


def test_every_promised_source_gives_a_full_round() -> None:
    show = Show(["pass", "pass", "pass"], drift_on=["coachella", "apple"])

    assert show.play() == []

    coachella, apple = show.journal.story().rounds
    assert (coachella.source, coachella.champion, coachella.challenger) == ("coachella", 1, 2)
    assert (apple.source, apple.champion, apple.challenger) == ("apple", 2, 3)
    for one in (coachella, apple):
        assert one.missing is None
        assert (one.accuracy_first_window, one.accuracy_after) == (0.0, 1.0)
        assert one.seconds_drift_to_serving is not None
        assert RUN_SECONDS <= one.seconds_drift_to_serving < RUN_SECONDS + 1


def test_a_challenger_that_was_rejected_first_is_a_second_attempt_of_the_same_round() -> None:
    show = Show(["pass", "fail", "pass", "pass"], drift_on=["coachella", "apple"])

    assert show.play() == []

    coachella, _apple = show.journal.story().rounds
    assert (coachella.attempts, coachella.challenger) == (2, 3)
    assert coachella.judged is not None and coachella.judged.outcome == "pass"
    assert coachella.seconds_drift_to_serving is not None
    assert coachella.seconds_drift_to_serving >= 2 * RUN_SECONDS, "counted from the first time drift was seen"
    rejected = [event.text for event in show.journal.story().events if event.kind == Kind.REJECTION]
    assert rejected == ["version 2 not promoted: floor: fail: accuracy 61.0 %, the policy asks 50.0 %"]


def test_a_source_that_no_run_follows_ends_the_demo_with_a_sentence() -> None:
    show = Show(["pass"], drift_on=["apple"])

    (sentence,) = show.play()

    assert sentence.startswith("coachella: no run was started")
    assert [leg.source for leg in show.journal.story().legs] == ["airline", "coachella"], "apple is not played any more"


def test_a_challenger_that_never_passes_is_named_with_its_gates() -> None:
    show = Show(["pass", *["inconclusive"] * 20], drift_on=["coachella"])

    (sentence,) = show.play()

    assert "none promoted" in sentence and "floor: inconclusive: accuracy 61.0 %" in sentence


def test_a_bootstrap_without_a_champion_is_a_broken_promise_too() -> None:
    show = Show(["fail"] * 20, drift_on=[])

    (sentence,) = show.play()

    assert sentence.startswith("airline: ")


def test_a_source_beyond_the_promised_ones_is_played_only_in_time() -> None:
    def sources_played(last_begin_seconds: float) -> list[str]:
        plan = replace(PLAN, promised=1, last_begin_seconds=last_begin_seconds)
        show = Show(["pass"] * 3, drift_on=["coachella", "apple"], plan=plan)
        assert show.play() == []
        return [leg.source for leg in show.journal.story().legs]

    assert sources_played(0.0) == ["airline", "coachella"]
    assert sources_played(1000.0) == ["airline", "coachella", "apple"]


def test_an_unpromised_source_may_fail() -> None:
    plan = replace(PLAN, promised=1, last_begin_seconds=1000.0)
    show = Show(["pass", "pass"], drift_on=["coachella"], plan=plan)

    assert show.play() == []


def test_a_stop_ends_the_stream_at_once() -> None:
    show = Show(["pass"], drift_on=[])
    show.stop.set()

    show.play()

    assert show.written == []


def test_the_plans_begin_with_the_bootstrap_and_hold_what_they_promise() -> None:
    assert FULL.sources[0] == FAST.sources[0] == SOURCES[0]
    assert (FULL.promised, FAST.promised) == (3, 2)
    assert len(FULL.sources) > FULL.promised and len(FAST.sources) > FAST.promised


def test_a_rate_raises_the_requests_with_it_where_needed() -> None:
    assert PLAN.at_rate(None) is PLAN
    assert PLAN.at_rate(10.0).requests_per_second == PLAN.requests_per_second
    fast = PLAN.at_rate(100.0)
    assert (fast.examples_per_second, fast.requests_per_second) == (100.0, 100.0)


def test_tweets_are_grouped_in_their_order() -> None:
    tweets = [*tweets_of("airline", 3), *tweets_of("apple", 2)]

    assert by_source(tweets) == {"airline": tweets[:3], "apple": tweets[3:]}


def test_the_windows_of_the_simulation_fit_into_a_source() -> None:
    assert WINDOWS.first + WINDOWS.after < PLAN.source_seconds * PLAN.examples_per_second

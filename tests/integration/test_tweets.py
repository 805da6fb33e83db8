"""The demo's stream, put back together from the package's one file."""

import itertools

import pytest

from daemon.demo import tweets
from daemon.demo.tweets import SOURCES, Tweet


@pytest.fixture(scope="module")
def stream() -> list[Tweet]:
    return tweets.stream(seed=1)


def test_sources_come_one_after_the_other_without_a_text_twice(stream: list[Tweet]) -> None:
    assert [source for source, _ in itertools.groupby(stream, key=lambda tweet: tweet.source)] == list(SOURCES)
    assert len({tweet.text for tweet in stream}) == len({tweet.id for tweet in stream}) == len(stream)


def test_the_sources_are_the_collections_they_were(stream: list[Tweet]) -> None:
    """Nearly every tweet of a collection has the word that it was collected by."""
    named = {"airline": "@", "coachella": "coachella", "claritin": "claritin"}
    for source, word in named.items():
        texts = [tweet.text.lower() for tweet in stream if tweet.source == source]
        assert sum(word in text for text in texts) / len(texts) > 0.95


def test_the_seed_shuffles_and_leaves_ids_alone(stream: list[Tweet]) -> None:
    other = tweets.stream(seed=2)
    assert [tweet.id for tweet in other] != [tweet.id for tweet in stream]
    assert set(other) == set(stream)
    labels = [tweet.label for tweet in stream[:200]]
    assert len(set(labels)) == 3

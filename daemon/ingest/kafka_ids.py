"""Fetching a topic by the id that brokers gave it when it was created, never by its name alone (KIP-516).

kafka-python fetches by name, so that one fetch may give a topic's records and the next, without a word, those of a topic that was
created under the same name after the first was deleted. By id brokers answer that they no longer know it.

Two private methods of the client are wrapped for that, those that build a request and take its answer. Brokers that know no
ids in fetches (Apache Kafka before 3.1) are asked by name as before: there a successor is noticed only when the client
refreshes its metadata.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

from kafka import KafkaConsumer
from kafka import TopicPartition as KafkaPartition

BY_ID = 13  # the version of fetch requests from which on topics have ids instead of names

Offsets = Mapping[KafkaPartition, int]  # of all partitions that a request is about, named in it or in an earlier one


def topic_ids(consumer: KafkaConsumer, topics: Sequence[str]) -> dict[str, UUID]:
    """The ids that brokers gave these topics when they were created, as far as the client knows them."""
    asked = getattr(getattr(consumer, "_cluster", None), "topic_id", None)
    found = {topic: asked(topic) for topic in topics} if asked else {}
    return {topic: given for topic, given in found.items() if given is not None}


def fetch_by(consumer: KafkaConsumer, ids: Mapping[str, UUID]) -> None:
    """From now on this consumer fetches the topics of these ids alone. Topics may be added later, before they are assigned.

    For clients of the releases compared with.
    """
    fetcher = consumer._fetcher
    fetcher._create_fetch_requests = _asking_by(ids, fetcher._create_fetch_requests)
    fetcher._handle_fetch_response = _answered_by(ids, fetcher._handle_fetch_response)


def _asking_by(
    ids: Mapping[str, UUID], create: Callable[[], Mapping[Any, tuple[Any, Offsets]]]
) -> Callable[[], Mapping[Any, tuple[Any, Offsets]]]:
    def asking() -> Mapping[Any, tuple[Any, Offsets]]:
        requests = create()
        for request, offsets in requests.values():
            if all(partition.topic in ids for partition in offsets):
                for topic in (*request.topics, *request.forgotten_topics_data):
                    topic.topic_id = ids.get(topic.topic)
                request._max_version = BY_ID
        return requests

    return asking


def _answered_by(ids: Mapping[str, UUID], handle: Callable[..., None]) -> Callable[..., None]:
    def answered(node: Any, offsets: Offsets, sent: float, response: Any) -> None:
        """An id that was not asked for gets no name: the client throws such an answer away."""
        if response.API_VERSION >= BY_ID:
            names = {ids[topic]: topic for topic in {partition.topic for partition in offsets}}
            for topic in response.responses:
                topic.topic = names.get(topic.topic_id, "")
        handle(node, offsets, sent, response)

    return answered

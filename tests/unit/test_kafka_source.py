from typing import Any

import pytest
from kafka import TopicPartition

from daemon.config import KafkaConfig
from daemon.core.errors import SourceError
from daemon.ingest.kafka_source import KafkaSource


def test_a_partition_that_no_broker_answered_for_is_named_and_asked_about_again() -> None:
    def beginning_offsets(partitions: Any, timeout_ms: int) -> Any:
        raise KeyError(partitions[0])  # as the client does

    source = KafkaSource(KafkaConfig(topics=["t"]))
    with pytest.raises(SourceError, match=r"topic='t', partition=0.* asked again"):
        source._asked(beginning_offsets, [TopicPartition("t", 0)])

"""What a learner reads the stream with: decoding, curation, the breaker and the loop, put together from config and policy."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from daemon.config import Config
from daemon.core.errors import ConfigError
from daemon.core.ports import Clock, Source, Store
from daemon.core.stream import Batch, DeadLetter
from daemon.ingest.acceptance import acceptance
from daemon.ingest.breaker import Breaker
from daemon.ingest.consume import BatchLimits, Ingest
from daemon.ingest.curate import Curator
from daemon.ingest.decode import Decoder, Parse
from daemon.ingest.halves import half_readers
from daemon.ingest.kafka_lookup import look_up
from daemon.ingest.redrive import Redriven, redriven, strings_in
from daemon.ingest.strict_json import parse_object
from daemon.policy.schema import Policy
from daemon.runtime.telemetry import LearnerMetrics


class Intake:
    """`follow`, `acceptance`, `accept` and `redriven` are for any thread, `ingest` runs on one of its own."""

    def __init__(
        self,
        config: Config,
        policy: Policy,
        store: Store,
        source: Source,
        *,
        parse: Parse,
        hash_of: Callable[[str], str] | None,
        clock: Clock,
        metrics: LearnerMetrics,
        held: Callable[[], bool],
        tell: Callable[[str, str], None],
    ) -> None:
        """`held`: whether something else keeps ingest from reading. `tell` hears "ok" or "degraded" and why."""
        self._config = config
        self._policy = policy
        self._store = store
        self._source = source
        self._parse = parse
        self._hash_of = hash_of
        self._look_up = partial(look_up, config.kafka)
        self._clock = clock
        self._metrics = metrics
        self._tell = tell
        self.breaker = Breaker(store, policy.records, clock, metrics)
        self.curator = self._new_curator()
        self._second_curator: Curator | None = None  # for redriving: ingest's own belongs to its thread
        kafka = config.kafka
        self.ingest = Ingest(
            source,
            store,
            self._decoder(),
            clock=clock,
            metrics=metrics,
            rng=random.Random(),
            poll_timeout=kafka.poll_timeout.total_seconds(),
            limits=BatchLimits(kafka.batch_records, kafka.batch_bytes, kafka.batch_time.total_seconds()),
            curator=self.curator,
            held=lambda: held() or self.breaker.held(),
            tell=self._tell_with_breaker,
        )

    def follow(self, policy: Policy) -> None:
        """The policy as it is now; from the next batch on."""
        self._policy = policy
        self.ingest.decoder = self._decoder()
        self.curator.follow(policy.records)
        self._second_curator = None

    def acceptance(self, topic: str, partition: int | None, begin_at: int | None) -> Batch:
        """What to store so that partitions that are not read are read again, as they are now."""
        return acceptance(topic, partition, begin_at, self._source.troubles(), self._store.next_offsets())

    def accept(self, batch: Batch) -> None:
        """Store it and read on."""
        self._store.commit(batch)
        self.ingest.restart()

    def redriven(self, letters: Sequence[DeadLetter]) -> Redriven:
        """What becomes of dead letters that are read once more, with the policy as it is now."""
        curator = self._second_curator = self._second_curator or self._new_curator()
        curator.resume()
        return redriven(letters, self._decoder(), curator.curate, self._clock(), self._look_up)

    def strings(self, letter: DeadLetter) -> Iterable[str]:
        """What a dead letter says by its schema. Raises SourceError while the schema registry does not answer."""
        if self._config.kafka.schema_registry.url is None:
            return ()
        return strings_in(letter.value, self._parse, self._config.kafka.max_record)

    def _decoder(self) -> Decoder:
        kafka, records = self._config.kafka, self._policy.records
        return Decoder(
            fields=kafka.fields,
            labels=frozenset(self._config.task.labels),
            records=records,
            splits=self._config.splits,
            max_record=kafka.max_record,
            parse=self._parse,
            halves=half_readers(kafka, records, self._config.task.labels, self._hash_of),
            hash_of=self._hash_of,
        )

    def _new_curator(self) -> Curator:
        return Curator(
            self._store,
            self._policy.records,
            labels=self._config.task.labels,
            splits=self._config.splits,
            breaker=self.breaker,
            metrics=self._metrics,
        )

    def _tell_with_breaker(self, state: str, detail: str) -> None:
        paused, failing = self.breaker.reason, self.breaker.warning
        self._tell("degraded" if paused or failing else state, "; ".join(filter(None, (paused, failing, detail))))


@contextmanager
def parser(config: Config) -> Iterator[Parse]:
    """What reads a record's value. Records with a schema need an extra, which is looked for only when the config asks for it."""
    if config.kafka.schema_registry.url is None:
        yield parse_object
        return
    try:
        from daemon.ingest.schema_registry import SchemaRegistry
    except ModuleNotFoundError as error:
        raise ConfigError(f"kafka.schema_registry.url needs `pip install 'relearnd[registry]'`: {error}") from error
    registry = SchemaRegistry(config.kafka.schema_registry)
    try:
        yield registry.parse
    finally:
        registry.close()

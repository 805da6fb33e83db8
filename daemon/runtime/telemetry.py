"""Logs for people and machines, and every metric by name. The one home of structlog's set-up and of prometheus.

A log line is a sentence for people plus an `action` for machines: log.info("promoted 42 over 41", action="promoted", version=42).
Texts of examples and requests never go into a log line.
"""

import logging
import math
import sys
from typing import Any

import structlog
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which nobody reads

_NOISY = ("kafka", "httpx", "httpcore", "apscheduler", "uvicorn.access", "asyncio", "grpc")
_TALKATIVE = ("uvicorn.error",)  # a warning for whatever a client sends that is no HTTP


def configure_logging(*, level: str, format: str) -> None:
    """Lines to stderr, vendors' included; noisy vendors from WARNING up."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    last: Any = structlog.processors.JSONRenderer()
    if format == "text":
        # By default it would show the local variables of each frame: texts, keys, passwords.
        last = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    else:
        shared.append(structlog.processors.format_exc_info)
    structlog.configure(
        processors=[*shared, last],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=last, foreign_pre_chain=shared))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)


class LearnerMetrics:
    """What a learner counts. One instance a process, on a registry of its own so that tests can have many."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"relearnd_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"relearnd_{name}", text, labels, registry=self.registry)

        self.examples = counter("examples_stored", "Examples stored.")
        self.dead_letters = counter("dead_letters", "Records that became dead letters.", "reason")
        self.gap_offsets = counter("gap_offsets", "Offsets that held nothing for us.", "reason")
        self.quarantined = counter("quarantined", "Valid records put into quarantine.", "reason")
        self.skipped_offsets = counter("skipped_offsets", "Offsets whose records were read and not kept.", "reason")
        self.label_delay = Histogram(
            "relearnd_label_delay_seconds",
            "Event time from a prediction to its label.",
            registry=self.registry,
            buckets=(1, 10, 60, 600, 3600, 21600, 86400, 259200, 604800, 2592000),
        )
        self.ingest_paused = gauge("ingest_paused", "1 while this keeps ingest from reading.", "reason")
        self.check_share = gauge("check_share", "What a data-quality check counts, as a share of its window.", "check")
        self.failed_checks = counter("failed_checks", "Times that a data-quality check began to fail.", "check")
        self.stale_batches = counter("stale_batches", "Batches the store refused because it stood elsewhere.")
        self.unknown_outcomes = counter("commit_unknown_outcomes", "Commits that raised, resolved by re-reading.")
        self.source_errors = counter("source_errors", "Errors of the stream.")
        self.outbox_letters = gauge("outbox_letters", "Dead letters not yet copied to kafka.dead_letter_topic.")
        self.outbox_age = gauge("outbox_age_seconds", "Age of the oldest dead letter not yet copied; 0 for none.")
        self.troubles = gauge("partitions_not_read", "Partitions that are not read while others are.", "reason")
        self.consumer_lag = gauge("consumer_lag", "Records not yet read.", "topic", "partition")
        self.drift_score = gauge("drift_score", "Newest drift score.", "column")
        self.drifted = gauge("drifted", "1 when the newest observation said drift.")
        self.late_examples = gauge("late_examples", "Late examples left out of the newest windows.")
        self.drift_errors = counter("drift_errors", "Observations that failed.")
        self.current_accuracy = gauge("current_accuracy", "Champion's accuracy on the newest labelled examples.")
        self.decisions = counter("decisions", "Decisions of the policy.", "action")
        self.runs = counter("runs", "Runs that ended.", "state")
        self.run_seconds = Histogram(
            "relearnd_run_seconds",
            "Length of runs.",
            registry=self.registry,
            buckets=(10, 30, 60, 120, 300, 600, 1800, 3600, 7200),
        )
        self.gates = counter("gates", "Gate results.", "gate", "outcome")
        self.champion = gauge("champion_version", "Number of the champion; 0 before the first.")
        self.servers = gauge("servers", "Servers heard of lately.")
        self.servers_refusing = gauge("servers_refusing", "Servers that refuse the champion.")
        self.freshness = gauge("freshness_seconds", "Event-time age of the newest example inside the champion.")
        self.paused = gauge("paused", "1 while an operator has paused learning.")
        self.policy_reload_ok = gauge("policy_last_reload_successful", "0 while the policy file on disk is not valid.")
        self.disk_free = gauge("disk_free_ratio", "Share of the file system that is free.", "folder")
        self.store_bytes = gauge("store_bytes", "Size of the store's file.")
        self.store_log_bytes = gauge("store_wal_bytes", "Size of the store's write-ahead log.")
        self.expired = counter("expired", "Records that retention has deleted.", "kind")
        self.gauge_errors = counter(
            "gauge_errors", "Times that gauges could not be read and stayed as they were.", "source"
        )
        self.erasures = counter("erasures", "People forgotten since the start.")
        self._know_no_champion()

    def _know_no_champion(self) -> None:
        """A 0 would be said of one."""
        for gauge in (self.current_accuracy, self.drifted, self.freshness):
            gauge.set(math.nan)

    def render(self) -> bytes:
        return generate_latest(self.registry)


class ServerMetrics:
    """What a server counts."""

    content_type = CONTENT_TYPE_LATEST  # of what `render` gives

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "relearnd_requests", "Requests answered.", ("endpoint", "code", "version"), registry=self.registry
        )
        self.latency = Histogram(
            "relearnd_request_seconds",
            "Time from request to answer.",
            ("endpoint",),
            registry=self.registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
        )
        self.batch_size = Histogram(
            "relearnd_batch_texts", "Texts in one inference.", registry=self.registry, buckets=(1, 2, 4, 8, 16, 32, 64)
        )
        self.queue = Gauge("relearnd_queue_texts", "Texts waiting for inference.", registry=self.registry)
        self.swaps = Counter("relearnd_swaps", "Swaps by result.", ("result",), registry=self.registry)
        self.swap_failed_requests = Counter(
            "relearnd_swap_failed_requests", "Requests that failed during a swap.", registry=self.registry
        )
        self.canary = Gauge(
            "relearnd_canary_version", "Version that answers the canary's share; 0: none.", registry=self.registry
        )
        self.shadow_texts = Counter(
            "relearnd_shadow_texts",
            "Texts offered to the shadow, by what became of them.",
            ("outcome",),
            registry=self.registry,
        )
        self.swap_seconds = Histogram(
            "relearnd_swap_seconds",
            "Time to load, verify, warm up and switch.",
            registry=self.registry,
            buckets=(0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
        )
        self.load_failures = Counter(
            "relearnd_load_failures", "Versions that could not be loaded.", registry=self.registry
        )
        self.champion = Gauge(
            "relearnd_served_version", "Version answering now; 0 before the first.", registry=self.registry
        )
        self.loaded = Gauge("relearnd_loaded_versions", "Versions loaded.", registry=self.registry)
        self.feedback_records = Counter(
            "relearnd_feedback_records", "Records written to the feedback sink.", ("kind",), registry=self.registry
        )
        self.feedback_dropped = Counter(
            "relearnd_feedback_dropped", "Answers that were not logged for want of room.", registry=self.registry
        )

    def refused(self) -> None:
        """A request without a valid key."""
        self.requests.labels("none", "401", "").inc()

    def render(self) -> bytes:
        return generate_latest(self.registry)

"""The demo from the first broker to the last sentence: who is started, who watches whom, and what is told at the end."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from daemon.demo import tweets
from daemon.demo.brokers import Broker, apache_kafka, create_topic, embedded_broker, external_broker
from daemon.demo.display import display
from daemon.demo.journal import Journal
from daemon.demo.kafka_producer import TopicWriter
from daemon.demo.page import page
from daemon.demo.plan import FAST, FULL, Plan, by_source, play_sources
from daemon.demo.report import Ledger, broken_promises, ledger, report
from daemon.demo.service import running_service
from daemon.demo.story import Story
from daemon.demo.stream import MALFORMED, Stream
from daemon.demo.traffic import Traffic
from daemon.demo.tweets import Tweet
from daemon.demo.view import rounds_table, summary
from daemon.demo.watch import Watch
from daemon.demo.workspace import Workspace, make_workspace
from daemon.runtime.signals import stop_on_signals

PARTITIONS = 3
REFRESH_SECONDS = 0.5
DRAIN_SECONDS = 30.0
NUMBERS, PLOT = "demo.json", "demo.html"
OK, BROKEN, INTERRUPTED = 0, 1, 130


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """`rate`: examples a second, None for the scenario's own. `seed` shuffles the tweets of each source."""

    fast: bool = False
    kafka: bool = False
    out: Path = Path("build")
    rate: float | None = None
    seed: int = 7


@dataclass(frozen=True, slots=True)
class Setting:
    """What is there before the daemon starts."""

    plan: Plan
    tweets: Mapping[str, Sequence[Tweet]]
    broker: Broker
    topic: str
    workspace: Workspace


@dataclass(frozen=True, slots=True)
class Result:
    """The demo as it went. `broken`: the promises that were not kept, as sentences."""

    story: Story
    ledger: Ledger
    broken: Sequence[str]


class Interrupted(Exception):
    """Somebody asked us to stop."""


def run_demo(options: DemoOptions, console: Console | None = None) -> int:
    """The whole demo. 0: every promise kept; 1: not, and it says which; 130: stopped from outside. Raises RelearndError.

    Shown on `console`; none: standard output.
    """
    console = console or Console()
    try:
        with stop_on_signals() as interrupted, _broker(options) as broker:
            setting = _set_up(options, broker)
            console.print(f"{broker.kind} broker at {', '.join(broker.bootstrap_servers)}", highlight=False)
            console.print(f"watch it from another terminal: relearnd status --config {setting.workspace.config}")
            result = _perform(setting, console, interrupted)
    except Interrupted:
        console.print("stopped: learner, server and broker are down")
        return INTERRUPTED
    _tell(result, setting, options.out, console)
    return BROKEN if result.broken else OK


def _broker(options: DemoOptions) -> AbstractContextManager[Broker]:
    servers = os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "").strip()
    if servers:
        return external_broker([server.strip() for server in servers.split(",")])
    return apache_kafka() if options.kafka else embedded_broker()


def _set_up(options: DemoOptions, broker: Broker) -> Setting:
    """The last demo's results are removed. On somebody else's broker the topic gets a name of its own, so that it is empty."""
    for name in (NUMBERS, PLOT):
        (options.out / name).unlink(missing_ok=True)
    plan = (FAST if options.fast else FULL).at_rate(options.rate)
    topic = f"relearnd-demo-{int(time.time())}" if broker.kind == "external" else "tweets"
    workspace = make_workspace(
        options.out / "demo", servers=broker.bootstrap_servers, topic=topic, policy_changes=plan.policy_changes
    )
    stream = by_source(tweets.stream(seed=options.seed, sources=plan.sources))
    create_topic(broker, topic, PARTITIONS)
    return Setting(plan, stream, broker, topic, workspace)


def _perform(setting: Setting, console: Console, interrupted: threading.Event) -> Result:
    """Raises Interrupted, and RelearndError when a process of ours fails. The daemon is down on return."""
    plan, workspace, started, stop = setting.plan, setting.workspace, time.time(), threading.Event()
    journal = Journal(plan.windows, started=started, clock=time.time)
    with (
        running_service(workspace.config, workspace.log) as service,
        closing(TopicWriter(setting.broker.bootstrap_servers, setting.topic)) as writer,
        closing(Watch(workspace.socket, started=started)) as watch,
        closing(Traffic(workspace.ready_file)) as traffic,
        display(console, sources=plan.sources, broker=setting.broker.kind) as show,
        _threads(stop) as threads,
    ):
        player = Stream(
            traffic,
            writer,
            journal,
            examples_per_second=plan.examples_per_second,
            requests_per_second=plan.requests_per_second,
            clock=time.time,
            stop=stop,
        )
        watching = threads.submit(watch.run, journal, traffic, stop)
        playing = threads.submit(play_sources, plan, setting.tweets, player, journal, clock=time.time, stop=stop)

        def look() -> None:
            service.check()
            if watching.done():
                watching.result()
            show(journal.picture())

        _wait(playing.done, look, interrupted)
        missing = playing.result()
        writer.flush()
        _wait(lambda: journal.settled >= writer.acknowledged, look, interrupted, limit=DRAIN_SECONDS)
        missing += _causes(journal, watch) if missing else []
        story, coverage = journal.story(), watch.coverage()
        exit_code = service.stop()
    malformed = sum(number <= len(story.produced_at) for number in MALFORMED)
    found = ledger(writer.acknowledged, malformed, coverage)
    return Result(story, found, broken_promises(story, found, missing, exit_code=exit_code))


@contextmanager
def _threads(stop: threading.Event) -> Iterator[ThreadPoolExecutor]:
    """Two threads: the stream's and the watch's. They are told to stop, and joined, on the way out."""
    with ThreadPoolExecutor(2, thread_name_prefix="demo") as pool:
        try:
            yield pool
        finally:
            stop.set()


def _wait(
    done: Callable[[], bool], look: Callable[[], None], interrupted: threading.Event, *, limit: float = float("inf")
) -> None:
    """Look on until it is done, at most `limit` seconds. Raises Interrupted, and what looking raises."""
    deadline = time.monotonic() + limit
    while not done() and time.monotonic() < deadline:
        look()
        if interrupted.wait(REFRESH_SECONDS):
            raise Interrupted
    look()


def _causes(journal: Journal, watch: Watch) -> Iterator[str]:
    """What may explain that a round did not happen."""
    if journal.picture().status is None:
        yield "the learner did not answer once while the stream went on"
    if error := watch.last_run_error():
        yield f"the newest run failed: {error}"


def _tell(result: Result, setting: Setting, out: Path, console: Console) -> None:
    """The table on screen, demo.json and demo.html."""
    told = report(result.story, result.ledger, broker=setting.broker.kind)
    (out / NUMBERS).write_text(json.dumps(told, indent=2, allow_nan=False) + "\n")
    (out / PLOT).write_text(page(result.story, told, result.broken))
    if result.story.rounds:
        console.print(rounds_table(result.story.rounds))
    for line in summary(told):
        console.print(line, markup=False, highlight=False)
    console.print(f"plot: {out / PLOT}   numbers: {out / NUMBERS}   log: {setting.workspace.log}", markup=False)
    for sentence in result.broken:
        console.print(f"not as promised: {sentence}", style="bold red", markup=False)
    if not result.broken:
        console.print("every promise of the scenario was kept", style="bold green")

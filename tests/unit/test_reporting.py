"""What a server says of itself: which versions it has given up on, when it says so again, and what it may not say."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from daemon.core.errors import UnavailableError
from daemon.core.states import ServableState
from daemon.core.types import REPORT_EVERY, Refusal, ServerReport
from daemon.registry.file_registry import FileRegistry
from daemon.serve.manager import ServingStatus, VersionStatus
from daemon.serve.reporting import Reporter, name_of
from daemon.serve.transitions import MOST_FAILURES
from daemon.testing.clock import START, ManualClock
from daemon.testing.registry import InMemoryRegistry


def failed(number: int, times: int) -> VersionStatus:
    return VersionStatus(number, ServableState.FAILED, failures=times, error="another sha256")


def serving(*versions: VersionStatus) -> ServingStatus:
    return ServingStatus("m", 1, 2, 7, versions, (), None)


class Disk(InMemoryRegistry):
    """Counts reports; may be mounted read-only."""

    def __init__(self) -> None:
        super().__init__()
        self.written = 0
        self.read_only = False

    def report(self, report: ServerReport) -> None:
        if self.read_only:
            raise UnavailableError("read-only file system")
        self.written += 1
        super().report(report)


class Server:
    def __init__(self, name: str, disk: Disk) -> None:
        self.clock = ManualClock()
        self.reporter = Reporter(name, disk, self.clock, lambda: (self.clock() - START).total_seconds())


def said(disk: Disk) -> Sequence[ServerReport]:
    return disk.servers("m")


def test_a_version_is_refused_once_it_is_not_tried_again() -> None:
    disk = Disk()
    server = Server("a", disk)
    server.reporter.tell(serving(VersionStatus(1, ServableState.READY), failed(2, MOST_FAILURES - 1)))
    assert said(disk) == [ServerReport("a", "m", START, served=1, generation=7, refused=[])]
    server.reporter.tell(serving(VersionStatus(1, ServableState.READY), failed(2, MOST_FAILURES)))
    assert said(disk) == [ServerReport("a", "m", START, 1, 7, [Refusal(2, "another sha256")])]


def test_a_report_is_written_when_it_says_something_new_and_renewed_while_it_does_not() -> None:
    disk = Disk()
    server = Server("a", disk)
    for _ in range(5):
        server.reporter.tell(serving())
    assert disk.written == 1
    server.reporter.tell(replace(serving(), served=2))
    assert disk.written == 2
    server.clock.advance(REPORT_EVERY)
    server.reporter.tell(replace(serving(), served=2))
    assert (disk.written, said(disk)[0].at) == (3, START + REPORT_EVERY)


def test_servers_do_not_write_over_each_other_and_one_that_stops_takes_its_report_away() -> None:
    disk = Disk()
    one, other = Server("a", disk), Server("b", disk)
    for server in (one, other):
        server.reporter.tell(serving())
    assert [report.server for report in said(disk)] == ["a", "b"]
    one.reporter.withdraw()
    assert [report.server for report in said(disk)] == ["b"]


def test_a_server_that_may_not_write_tries_again_when_it_would_renew_its_report() -> None:
    disk = Disk()
    disk.read_only = True
    server = Server("a", disk)
    server.reporter.tell(serving())
    disk.read_only = False
    server.reporter.tell(serving())
    assert said(disk) == []
    server.clock.advance(REPORT_EVERY)
    server.reporter.tell(serving())
    assert len(said(disk)) == 1


@pytest.mark.parametrize("host", ["web-1.example", "_rack 7", "büro", "-", "x" * 200])
def test_whatever_its_host_is_called_a_server_has_a_name_that_the_registry_takes(host: str, tmp_path: Path) -> None:
    registry = FileRegistry.open_for_writing(tmp_path)
    names = {name_of(host, 8080) for _ in range(2)}
    for name in names:
        registry.report(ServerReport(name, "m", START, 1, 7))
    assert {report.server for report in registry.servers("m")} == names
    assert len(names) == 2, "another one after each start"


def test_a_server_that_was_not_heard_of_for_long_is_silent() -> None:
    report = ServerReport("a", "m", START, 1, 7)
    assert not report.silent(START + 2 * REPORT_EVERY)
    assert report.silent(START + timedelta(minutes=5))

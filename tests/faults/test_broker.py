"""Each fault of the network once and briefly, and the broker killed, with a real Apache Kafka."""

import os
from collections.abc import Iterator

import pytest

from daemon.core.errors import UnavailableError
from tests.faults.broker import FAULTS, SILENT, Scene, scene

pytestmark = pytest.mark.kafka


@pytest.fixture(scope="module")
def staged() -> Iterator[Scene]:
    try:
        with scene() as opened:
            yield opened
    except UnavailableError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.mark.parametrize("fault", FAULTS)
def test_what_the_network_does_neither_loses_nor_repeats_a_record(staged: Scene, fault: str) -> None:
    long_enough_to_see_a_busy_loop = 3.0
    outcome = staged.go_through(fault, seconds=long_enough_to_see_a_busy_loop if fault in SILENT else 0.4, records=200)
    assert outcome.finding.clean, outcome

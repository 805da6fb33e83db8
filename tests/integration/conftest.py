"""What integration tests of more than one file ask for."""

from collections.abc import Iterator

import pytest

from daemon.core.errors import UnavailableError
from daemon.demo.brokers import Broker
from tests.secured import Certificates, make_certificates, secured_kafka


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def cluster(certificates: Certificates) -> Iterator[Broker]:
    """An Apache Kafka that lets nobody in without a name."""
    try:
        with secured_kafka(certificates) as broker:
            yield broker
    except UnavailableError as error:
        pytest.skip(str(error))

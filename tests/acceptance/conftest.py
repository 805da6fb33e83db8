import shutil

import pytest

from daemon.demo.brokers import Broker
from tests.conftest import BROKER_KINDS, Brokers


@pytest.fixture
def broker(brokers: Brokers) -> Broker:
    """One broker, the most real one there is: these scenarios are long."""
    real = BROKER_KINDS == ["external"] or (shutil.which("java") and shutil.which("mvn"))
    return brokers.get("external" if BROKER_KINDS == ["external"] else "apache-kafka" if real else "tansu")

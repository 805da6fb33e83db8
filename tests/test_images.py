"""What can be said of the images without building them. `make check-images` does more: it runs their commands."""

import importlib.util
import os
import re
import sys
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from daemon.config import Config, load_config
from daemon.registry.file_registry import FileRegistry
from daemon.settings.units import parse_duration

ROOT = Path(__file__).parent.parent
IMAGES = ["server", "learner"]


def load_check_images() -> Any:
    spec = importlib.util.spec_from_file_location("check_images", ROOT / "docker" / "check_images.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


Image = load_check_images().Image
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def config_of(image: str, monkeypatch: pytest.MonkeyPatch, **environment: str) -> Config:
    """The config of a process in its container."""
    for name in [name for name in os.environ if name.startswith("RELEARND_")]:
        monkeypatch.delenv(name)
    inside = Image.read(image).environment | environment
    for name in inside.keys() - {"PATH"}:
        monkeypatch.setenv(name, inside[name])
    return load_config(ROOT / inside["RELEARND_CONFIG"])


# --- Dockerfiles --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_is_pinned_and_runs_as_nobody_special(name: str) -> None:
    image = Image.read(name)

    assert all(re.fullmatch(r"[\w/.-]+:[0-9][\w.-]*", base) for base in image.all("FROM"))
    assert image.all("ADD") == []
    user, group = image.all("USER")[-1].split(":")
    assert int(user) > 0
    assert int(group) > 0
    assert any(f"--uid {user}" in run for run in image.all("RUN")), "files made for another user"
    installs = [run for run in image.all("RUN") if "pip install" in run]
    assert installs
    assert all("-c constraints.txt" in run for run in installs)


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_says_how_it_is(name: str) -> None:
    """In exec form, so that SIGTERM reaches the process, and asking the port that the process listens on."""
    image = Image.read(name)

    assert image.command == ["relearnd", {"server": "serve", "learner": "learn"}[name]]
    assert f"http://127.0.0.1:{image.port}/livez" in image.health_command[-1]


@pytest.mark.parametrize("name", IMAGES)
def test_what_an_image_copies_is_there_and_is_not_ignored(name: str) -> None:
    sources = {source for rest in Image.read(name).all("COPY") for source in rest.split()[:-1]}
    ignore = (ROOT / "docker" / f"{name}.Dockerfile.dockerignore").read_text().split()

    assert {source for source in sources if not (ROOT / source).exists()} == set()
    assert {line[1:] for line in ignore if line.startswith("!")} == sources


def test_only_the_worker_gets_torch() -> None:
    assert Image.read("server").pip_arguments("server")[-1] == ".[serve]"
    assert Image.read("learner").pip_arguments("learner")[-1] == ".[learn]"
    assert ".[train]" in Image.read("learner").pip_arguments("worker")


def test_the_settings_in_the_images_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    server, learner = config_of("server", monkeypatch), config_of("learner", monkeypatch)

    assert (server.server.host, str(server.server.port)) == ("0.0.0.0", Image.read("server").port)
    assert (learner.metrics.host, str(learner.metrics.port)) == ("0.0.0.0", Image.read("learner").port)
    assert learner.worker.python == Path("/opt/worker/bin/python")


# --- compose ------------------------------------------------------------------------------------------------------


def test_images_in_compose_are_pinned_and_ours_are_this_version() -> None:
    images = {name: service["image"] for name, service in SERVICES.items()}

    assert images["kafka"] == images["topic"]
    assert re.fullmatch(r"apache/kafka:4\.\d+\.\d+", images["kafka"])
    assert {images["learner"], images["server"]} == {f"relearnd-learner:{VERSION}", f"relearnd-server:{VERSION}"}


def test_compose_starts_in_order_and_the_server_on_its_own() -> None:
    assert SERVICES["topic"]["depends_on"] == {"kafka": {"condition": "service_healthy"}}
    assert SERVICES["learner"]["depends_on"] == {"topic": {"condition": "service_completed_successfully"}}
    assert SERVICES["kafka"]["healthcheck"]["test"][0] == "CMD"
    assert "depends_on" not in SERVICES["server"]


def test_nothing_in_compose_listens_beyond_this_host() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]

    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_the_learner_reaches_the_broker_and_the_topic_that_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {name: filled_in(value) for name, value in SERVICES["learner"]["environment"].items()}
    config = config_of("learner", monkeypatch, **given)
    advertised = SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"].split(",")
    made = next(filled_in(word) for word in SERVICES["topic"]["command"] if word.startswith("--topic="))

    assert [f"INSIDE://{server}" for server in config.kafka.bootstrap_servers] == advertised[:1]
    assert [f"--topic={topic}" for topic in config.kafka.topics] == [made]
    assert config.task.labels == ["billing", "delivery"]


def filled_in(text: str) -> str:
    """As compose does it with RELEARND_LABELS set and nothing else."""
    text = re.sub(r"\$\{RELEARND_LABELS:-[^}]*\}", "billing,delivery", text)
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def test_state_is_on_volumes_and_the_server_may_only_read(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, server = mounts("learner"), mounts("server")
    config = config_of("learner", monkeypatch)

    assert learner["registry"] == (str(config.registry.path), "rw")
    assert server["registry"] == (str(config_of("server", monkeypatch).registry.path), "ro")
    assert Path(learner["data"][0]) in config.store.path.parents
    assert Path(learner["data"][0]) in config.runs.path.parents
    assert mounts("kafka")["kafka"][0] == SERVICES["kafka"]["environment"]["KAFKA_LOG_DIRS"]
    assert Path(server["server-state"][0]) in config_of("server", monkeypatch).server.state.parents
    assert set(COMPOSE["volumes"]) == {"kafka", "data", "registry", "reports", "server-state"}
    assert SERVICES["server"]["read_only"] is True


def test_a_server_that_may_only_read_the_registry_may_still_report(monkeypatch: pytest.MonkeyPatch) -> None:
    reports = FileRegistry(config_of("server", monkeypatch).registry.path)._servers

    assert mounts("server")["reports"] == mounts("learner")["reports"] == (str(reports), "rw")
    for name in IMAGES:
        made = [word for run in Image.read(name).all("RUN") if "install -d" in run for word in run.split()]
        assert str(reports) in made, "nothing can be mounted in a read-only volume that lacks the folder"


def mounts(service: str) -> dict[str, tuple[str, str]]:
    """Source -> where, and whether it may be written."""
    parts = [volume.split(":") for volume in SERVICES[service]["volumes"]]
    return {source: (target, *mode)[:2] if mode else (target, "rw") for source, target, *mode in parts}


def test_a_container_gets_the_time_its_process_needs_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("server", monkeypatch).server
    longest = config.drain_delay + config.drain_limit + timedelta(seconds=10)

    assert parse_duration(SERVICES["server"]["stop_grace_period"]) >= longest
    assert parse_duration(SERVICES["learner"]["stop_grace_period"]) >= timedelta(seconds=60)


@pytest.mark.parametrize("name", IMAGES)
def test_our_containers_have_no_privileges(name: str) -> None:
    assert SERVICES[name]["cap_drop"] == ["ALL"]
    assert SERVICES[name]["security_opt"] == ["no-new-privileges:true"]
    assert SERVICES[name]["init"] is True

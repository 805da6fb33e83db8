"""More load than a server can carry, and a stop in the midst of it: what is taken is answered, the rest is told so at once."""

import asyncio
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import httpx

from tests.serving import PATIENCE, Running, running, with_champion

SECONDS = 0.05  # that an inference of one text takes here: 20 a second
RATE, FOR = 60, 3.0  # requests a second, three times that; seconds
QUEUE = 10  # texts
SLOW = f"""
import time
from daemon.serve.ort_loader import Servable
def infer(servable, rows, sound=Servable.infer):
    time.sleep({SECONDS})
    return sound(servable, rows)
Servable.infer = infer
"""


@contextmanager
def slow(folder: Path, **changes: Any) -> Iterator[Running]:
    with_champion(folder)
    with running(folder, first=SLOW, max_batch=1, inference_threads=1, max_queue=QUEUE, **changes) as server:
        yield server


async def open_loop(url: str) -> list[tuple[int, bool, float]]:
    """Of each request, sent when its time has come whatever became of those before: code, Retry-After, seconds."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=50)
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, limits=limits) as client:

        async def ask(number: int) -> tuple[int, bool, float]:
            await asyncio.sleep(number / RATE)
            started = time.monotonic()
            answer = await client.post("/predict", json={"text": "good"})
            return answer.status_code, "Retry-After" in answer.headers, time.monotonic() - started

        return list(await asyncio.gather(*(ask(number) for number in range(int(RATE * FOR)))))


def test_at_three_times_its_capacity_a_server_answers_what_it_can_and_refuses_the_rest_at_once(tmp_path: Path) -> None:
    with slow(tmp_path) as server:
        found = asyncio.run(open_loop(server.url))
        assert httpx.get(f"{server.url}/livez").status_code == 200
        assert httpx.post(f"{server.url}/predict", json={"text": "good"}).status_code == 200
    assert {(code, retry) for code, retry, _ in found} == {(200, False), (503, True)}
    answered = [seconds for code, _, seconds in found if code == 200]
    refused = sorted(seconds for code, _, seconds in found if code == 503)
    capacity = FOR / SECONDS
    assert 0.6 * capacity < len(answered) < 1.3 * (capacity + QUEUE)
    assert max(answered) < 10 * SECONDS * (QUEUE + 2), "nobody waits behind more than the queue holds"
    assert refused[len(refused) // 2] < 0.1, "most are told without waiting"


def test_a_stop_under_load_loses_no_request_that_was_sent_while_it_was_ready_or_said_otherwise(tmp_path: Path) -> None:
    enough = Event()

    def ask(url: str) -> list[int]:
        codes = []
        with httpx.Client(base_url=url, timeout=PATIENCE) as client:
            while not enough.is_set():
                codes.append(client.post("/predict", json={"text": "good"}).status_code)
        return codes

    with slow(tmp_path, drain_delay="1500ms") as server, ThreadPoolExecutor(4) as clients:
        asking = [clients.submit(ask, server.url) for _ in range(4)]
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        while httpx.get(f"{server.url}/readyz").status_code == 200:
            time.sleep(0.01)
        time.sleep(0.3)  # until load balancers have noticed
        enough.set()
        codes = [code for each in asking for code in each.result(PATIENCE)]
    assert set(codes) == {200}
    assert len(codes) > 5


def test_what_waits_in_the_queue_at_a_stop_is_answered(tmp_path: Path) -> None:
    def ask(url: str) -> int:
        return httpx.post(f"{url}/predict", json={"text": "good"}, timeout=PATIENCE).status_code

    with slow(tmp_path) as server, ThreadPoolExecutor(QUEUE) as clients:
        asking = [clients.submit(ask, server.url) for _ in range(QUEUE)]
        while (
            metric(server, 'requests_total{code="200",endpoint="predict"') + metric(server, "queue_texts") < QUEUE - 1
        ):
            time.sleep(0.01)  # one is being computed, and all the others have been answered or wait
        server.process.send_signal(signal.SIGTERM)
        assert [each.result(PATIENCE) for each in asking] == [200] * QUEUE
        assert server.process.wait(PATIENCE) == 0


def metric(server: Running, name: str) -> float:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"relearnd_{name}"))

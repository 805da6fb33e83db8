"""The HTTP API over a model that answers when the test lets it: what is refused, what waits, what is given up."""

import asyncio
import math
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest

from daemon.config import ServerConfig
from daemon.core.artefact import Golden
from daemon.core.errors import ArtefactError
from daemon.core.types import Prediction
from daemon.runtime.telemetry import ServerMetrics
from daemon.serve.batcher import Batcher
from daemon.serve.http_api import Service, create_app
from daemon.serve.manager import ServingStatus, VersionStatus
from daemon.serve.readiness import Readiness
from daemon.serve.requests import RequestIds
from daemon.serve.router import Router, Slot
from tests.artefacts import MODEL, version_of

INFER = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["good"]}]}

GOLDEN = Golden(["first golden", "second golden"], [[math.log(0.25), math.log(0.75)]] * 2, tolerance=1e-4)


class Sure:
    """Always the same answer, as soon as `go` is set; fails on request."""

    def __init__(self) -> None:
        self.computed: list[str] = []
        self.answer: Prediction | None = Prediction("up", 0.75, [0.25, 0.75])
        self.cut: set[str] = set()  # texts of which there is more than is read
        self.go = threading.Event()
        self.go.set()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(text.encode()) for text in texts]

    def infer(self, rows: Sequence[Sequence[int]]) -> list[Prediction]:
        texts = [bytes(row).decode() for row in rows]
        self.computed += texts
        self.go.wait()
        if "fail" in texts:
            raise ArtefactError("the graph gave logits that are not finite")
        if "bug" in texts:
            raise ZeroDivisionError
        if self.answer is None:
            raise ArtefactError("gone")
        return [replace(self.answer, truncated=text in self.cut) for text in texts]


@dataclass
class Bench:
    """`answering=False`: the inference thread never starts, so whatever is submitted waits."""

    limits: ServerConfig = field(default_factory=ServerConfig)
    loaded: Sequence[int] = (1, 2)
    stuck: Mapping[str, float] = field(default_factory=dict)
    answering: bool = True

    def __post_init__(self) -> None:
        self.now = 0.0
        self.model = Sure()
        self.metrics = ServerMetrics()
        self.stopping = threading.Event()
        self.router = Router()
        slots = {number: Slot(version_of(number), self.model, GOLDEN) for number in self.loaded}
        served = max(self.loaded, default=None)
        if served is not None:
            self.router.publish(slots[served], slots)
        self.batcher = Batcher(max_batch=8, max_queue=self.limits.max_queue, on_batch=self.metrics.batch_size.observe)
        versions = [VersionStatus(number) for number in self.loaded]
        status = ServingStatus(MODEL, served, served, 1, versions, [], None)
        self.service = Service(
            model=MODEL,
            router=self.router,
            batcher=self.batcher,
            status=lambda: status,
            stuck=lambda: self.stuck,
            metrics=self.metrics,
            limits=self.limits,
            stopping=self.stopping,
            readiness=Readiness(self.router, self.batcher, monotonic=lambda: self.now),
            ids=RequestIds(),
        )
        self.app = create_app(self.service)
        if self.answering:
            threading.Thread(target=self.batcher.run, args=(lambda: None,), daemon=True).start()

    def client(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://server")

    def ask(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        async def once() -> httpx.Response:
            async with self.client() as client:
                return await client.request(method, path, **arguments)

        return asyncio.run(once())


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.batcher.close()


# --- answers ---


def test_predict_answers_one_text_or_several_and_names_its_version(bench: Bench) -> None:
    named = {"label": "up", "confidence": 0.75, "probabilities": {"down": 0.25, "up": 0.75}}
    one = bench.ask("POST", "/predict", json={"text": "good", "id": "a"})
    assert one.json() == {"id": "a", "model": MODEL, "version": 2, **named}
    two = bench.ask("POST", "/predict", json={"texts": ["good", "bad"], "id": "b"})
    answers = [{"id": "b-0", **named}, {"id": "b-1", **named}]
    assert two.json() == {"id": "b", "model": MODEL, "version": 2, "predictions": answers}
    assert one.headers["X-Model-Version"] == two.headers["X-Model-Version"] == "2"


def test_a_text_that_was_cut_is_said_to_be_truncated_by_its_answer(bench: Bench) -> None:
    bench.model.cut = {"a long one"}
    one, other = (bench.ask("POST", "/predict", json={"text": text}).json() for text in ("a long one", "good"))
    assert (one["truncated"], "truncated" in other) == (True, False)
    both = bench.ask("POST", "/predict", json={"texts": ["good", "a long one"]}).json()["predictions"]
    assert ["truncated" in answer for answer in both] == [False, True]
    for text, parameters in (("good", None), ("a long one", {"truncated": True})):
        tensor = {**INFER["inputs"][0], "data": [text]}
        answer = bench.ask("POST", f"{V2}/infer", json={"inputs": [tensor]}).json()
        assert answer.get("parameters") == parameters


def test_infer_answers_with_the_champion_or_the_version_in_the_path(bench: Bench) -> None:
    for path, version in ((f"/v2/models/{MODEL}/infer", "2"), (f"/v2/models/{MODEL}/versions/1/infer", "1")):
        answer = bench.ask("POST", path, json={**INFER, "id": "7", "outputs": [{"name": "label"}]})
        assert answer.json() == {
            "model_name": MODEL,
            "model_version": version,
            "id": "7",
            "outputs": [{"name": "label", "datatype": "BYTES", "shape": [1], "data": ["up"]}],
        }
        assert answer.headers["X-Model-Version"] == version


def test_the_open_inference_protocol_s_questions_about_server_and_model(bench: Bench) -> None:
    assert bench.ask("GET", "/v2").json()["name"] == "relearnd"
    assert bench.ask("GET", "/v2/health/live").status_code == 200
    assert bench.ask("GET", "/v2/health/ready").status_code == 200
    model = bench.ask("GET", f"/v2/models/{MODEL}").json()
    assert (model["name"], model["versions"], model["inputs"][0]["name"]) == (MODEL, ["1", "2"], "text")
    assert model["outputs"][2] == {"name": "probabilities", "datatype": "FP32", "shape": [-1, 2]}
    assert bench.ask("GET", f"/v2/models/{MODEL}/versions/1").json()["versions"] == ["1"]
    assert bench.ask("GET", f"/v2/models/{MODEL}/ready").json() == {"name": MODEL, "ready": True}
    assert bench.ask("GET", f"/v2/models/{MODEL}/versions/1/ready").status_code == 200
    assert bench.ask("GET", f"/v2/models/{MODEL}/versions/9/ready").status_code == 404


def test_requests_are_counted_by_endpoint_code_and_version(bench: Bench) -> None:
    bench.ask("POST", "/predict", json={"text": "good"})
    bench.ask("POST", "/predict", content=b"{")
    bench.ask("GET", "/nowhere")
    metrics = bench.ask("GET", "/metrics").text
    assert 'relearnd_requests_total{code="200",endpoint="predict",version="2"} 1.0' in metrics
    assert 'relearnd_requests_total{code="400",endpoint="predict",version=""} 1.0' in metrics
    assert 'relearnd_requests_total{code="404",endpoint="none",version=""} 1.0' in metrics


# --- refusals ---

PREDICT, V2 = "/predict", f"/v2/models/{MODEL}"


@pytest.mark.parametrize(
    ("method", "path", "body", "code", "says"),
    [
        ("POST", PREDICT, b"", 400, "not the JSON"),
        ("POST", PREDICT, b"\xff\xfe", 400, "not the JSON"),
        ("POST", PREDICT, b'{"text": "\\ud800"}', 400, "\\ud800 is half a character"),
        ("POST", PREDICT, b'{"text": "\\ud83d\\ude00 and \\uDE00 alone"}', 400, "\\uDE00 is half a character"),
        ("POST", PREDICT, b'{"text": "\\ud83d\\ude00', 400, "truncated"),
        ("POST", PREDICT, b'{"text": ' + b"[" * 300, 400, "not the JSON"),
        ("POST", PREDICT, b"{}", 400, "either"),
        ("POST", PREDICT, b'{"text": "a", "texts": ["b"]}', 400, "either"),
        ("POST", PREDICT, b'{"txt": "a"}', 400, "txt"),
        ("POST", PREDICT, b'{"text": 5}', 400, "Expected `str | null`, got `int`"),
        ("POST", PREDICT, b'{"texts": []}', 400, "at least one"),
        ("POST", PREDICT, b'{"texts": ["good", " "]}', 400, "text 1 is empty"),
        ("POST", PREDICT, b'{"texts": ["a", "b", "c", "d"]}', 400, "send at most 3"),
        ("POST", PREDICT, b'{"text": "' + b"x" * 500 + b'"}', 413, "larger than 400 bytes"),
        ("GET", PREDICT, b"", 405, "asked with POST"),
        ("POST", "/metrics", b"", 405, "this path is asked with"),
        ("GET", "/nowhere", b"", 404, "GET /openapi.json lists"),
        ("POST", "/v2/models/other/infer", b"{}", 404, "serves 'tweets'"),
        ("POST", f"{V2}/versions/9/infer", None, 404, r"version 9 is not loaded here; loaded are [1, 2]"),
        ("POST", f"{V2}/versions/0/infer", b"{}", 404, "a version is a number from 1; got '0'"),
        ("POST", f"{V2}/versions/{'9' * 5000}/infer", b"{}", 404, "a version is a number"),
        ("POST", f"{V2}/infer", b"{}", 400, "inputs"),
    ],
)
def test_what_the_client_can_mend_is_said(method: str, path: str, body: bytes | None, code: int, says: str) -> None:
    bench = Bench(limits=ServerConfig(max_texts=3, max_body="400B"))  # type: ignore[arg-type]
    content = {"json": INFER} if body is None else {"content": body}
    answer = bench.ask(method, path, **content)
    assert answer.status_code == code
    assert says in answer.json()["error"]
    assert bench.model.computed == []


def test_without_a_champion_nothing_is_ready_and_503_says_when_to_come_back() -> None:
    bench = Bench(loaded=())
    for answer in (
        bench.ask("POST", PREDICT, json={"text": "good"}),
        bench.ask("POST", f"{V2}/infer", json=INFER),
        bench.ask("GET", "/readyz"),
        bench.ask("GET", "/v2/health/ready"),
        bench.ask("GET", f"{V2}/ready"),
    ):
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        assert "no champion" in answer.json()["error"]
    assert bench.ask("GET", "/livez").status_code == 200
    assert bench.ask("GET", f"{V2}").json()["versions"] == []
    assert bench.ask("GET", "/status").json()["ready"] is False


def test_when_stopping_it_is_not_ready_but_still_answers(bench: Bench) -> None:
    bench.stopping.set()
    readiness = bench.ask("GET", "/readyz")
    assert (readiness.status_code, readiness.json()["error"]) == (503, "the server is stopping")
    assert bench.ask("POST", PREDICT, json={"text": "good"}).status_code == 200


def test_a_loop_that_stopped_beating_ends_liveness() -> None:
    bench = Bench(stuck={"inference": 130.0})
    assert bench.ask("GET", "/livez").status_code == 503
    assert bench.ask("GET", "/livez").json() == {"live": False, "stuck": {"inference": 130.0}}


def test_faults_of_ours_are_500_with_a_sentence(bench: Bench) -> None:
    fault = bench.ask("POST", PREDICT, json={"text": "fail"})
    assert (fault.status_code, fault.json()) == (500, {"error": "the graph gave logits that are not finite"})
    bug = bench.ask("POST", PREDICT, json={"text": "bug"})
    assert (bug.status_code, bug.json()) == (500, {"error": "an error of the server's own; its log says more"})


# --- waiting ---


def concurrently(
    bench: Bench, ask: Callable[[httpx.AsyncClient], Awaitable[httpx.Response]], times: int
) -> list[httpx.Response]:
    async def all_at_once() -> list[httpx.Response]:
        async with bench.client() as client:
            return list(await asyncio.gather(*(ask(client) for _ in range(times))))

    return asyncio.run(all_at_once())


def test_beyond_the_queue_requests_are_refused_at_once_and_those_that_wait_too_long_are_given_up() -> None:
    bench = Bench(limits=ServerConfig(max_queue=2, request_timeout="50ms"), answering=False)  # type: ignore[arg-type]
    answers = concurrently(bench, lambda client: client.post(PREDICT, json={"text": "good"}), 5)
    assert [(answer.status_code, answer.headers["Retry-After"]) for answer in answers] == [(503, "1")] * 5
    reasons = sorted(answer.json()["error"] for answer in answers)
    assert [reason.startswith("2 texts are waiting") for reason in reasons] == [True] * 3 + [False] * 2
    assert reasons[3] == reasons[4] == "no answer within 0.05 s; try again"
    bench.batcher.close()
    bench.batcher.run(lambda: None)
    assert bench.model.computed == [], "what was given up must not be computed"


def test_every_answer_has_an_id_the_client_s_or_a_new_one(bench: Bench) -> None:
    own = bench.ask("POST", PREDICT, json={"text": "good", "id": "order-7"})
    assert own.json()["id"] == own.headers["X-Request-Id"] == "order-7"
    by_header = bench.ask("POST", f"{V2}/infer", json=INFER, headers={"X-Request-Id": "h-1"})
    assert by_header.json()["id"] == by_header.headers["X-Request-Id"] == "h-1"
    new = [bench.ask("POST", PREDICT, json={"text": "good"}).json()["id"] for _ in range(3)]
    assert len(set(new)) == 3
    for id in ("with space", "new\nline", "\u00e9", "x" * 129):
        assert bench.ask("POST", PREDICT, json={"text": "good", "id": id}).status_code == 400


def test_a_full_queue_does_not_touch_health_and_metrics() -> None:
    bench = Bench(limits=ServerConfig(max_queue=1))
    assert bench.ask("GET", "/readyz").status_code == 200
    bench.model.go.clear()
    computed = bench.batcher.submit(bench.model, ["computed"])
    while not computed.running():
        time.sleep(0.001)
    bench.batcher.submit(bench.model, ["waits"])
    bench.now += 5
    for path in ("/livez", "/readyz", "/metrics", "/status"):
        assert bench.ask("GET", path).status_code == 200
    bench.now += 10
    assert bench.ask("GET", "/readyz").status_code == 503, "nothing was answered for too long"
    bench.model.go.set()


def test_ready_is_who_answers_the_golden_texts_as_when_it_was_judged(bench: Bench) -> None:
    assert bench.ask("GET", "/readyz").status_code == 200
    bench.ask("GET", "/readyz")
    assert bench.model.computed == list(GOLDEN.texts), "asked once and believed for a while"
    bench.now += 2
    bench.model.answer = Prediction("up", 0.8, [0.2, 0.8])
    for path in ("/readyz", "/v2/health/ready", f"{V2}/ready", f"{V2}/versions/2/ready"):
        answer = bench.ask("GET", path)
        assert answer.status_code == 503
        assert "otherwise than when it was judged" in answer.json()["error"]
    bench.now += 2
    bench.model.answer = None
    assert "cannot answer" in bench.ask("GET", "/readyz").json()["error"]
    assert bench.ask("GET", "/livez").status_code == 200


def test_a_version_is_ready_by_its_own_answers_and_not_the_champion_s(bench: Bench) -> None:
    wrong, versions = Sure(), {number: version_of(number) for number in (1, 2)}
    wrong.answer = Prediction("up", 0.8, [0.2, 0.8])
    slots = {1: Slot(versions[1], wrong, GOLDEN), 2: Slot(versions[2], bench.model, GOLDEN)}
    bench.router.publish(slots[2], slots)
    one, two = (f"{V2}/versions/{number}/ready" for number in (1, 2))
    assert [bench.ask("GET", path).status_code for path in ("/readyz", two, one)] == [200, 200, 503]
    assert "version 1 answers its golden texts otherwise" in bench.ask("GET", one).json()["error"]
    assert bench.router.traffic.lately(1e9).requests == 0, "what we ask ourselves is no request"
    bench.router.publish(slots[1], slots)
    assert [bench.ask("GET", path).status_code for path in ("/readyz", two, one)] == [503, 200, 503]
    bench.router.publish(slots[2], {2: slots[2]})
    assert bench.ask("GET", one).status_code == 404


def test_whoever_asks_about_a_version_that_is_slow_to_answer_holds_up_nobody_else(bench: Bench) -> None:
    assert bench.ask("GET", "/readyz").status_code == 200
    before = len(bench.model.computed)
    bench.model.go.clear()

    async def meanwhile() -> int:
        async with bench.client() as client:
            slow = asyncio.create_task(client.get(f"{V2}/versions/1/ready"))
            while len(bench.model.computed) == before:
                await asyncio.sleep(0.001)
            for _ in range(3):
                assert (await client.get("/readyz")).status_code == 200
            assert not slow.done(), "the event loop had to wait for it"
            bench.model.go.set()
            return (await slow).status_code

    assert asyncio.run(meanwhile()) == 200


def test_a_client_says_how_long_it_waits_and_what_is_late_is_not_computed() -> None:
    bench = Bench(answering=False)
    answer = bench.ask("POST", PREDICT, json={"text": "good"}, headers={"X-Request-Timeout-Ms": "20"})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert answer.json()["error"] == "no answer within 0.02 s; try again"
    soon = bench.ask("POST", PREDICT, json={"text": "good"}, headers={"X-Request-Timeout-Ms": "soon"})
    assert (soon.status_code, "whole number of milliseconds" in soon.json()["error"]) == (400, True)
    bench.batcher.close()
    bench.batcher.run(lambda: None)
    assert bench.model.computed == []


def test_a_client_that_leaves_gives_its_place_up() -> None:
    bench = Bench(answering=False)
    messages = iter([{"type": "http.request", "body": b'{"text": "good"}'}, {"type": "http.disconnect"}])

    async def receive() -> dict[str, Any]:
        return next(messages)

    async def send(message: Any) -> None:
        pass

    scope = {"type": "http", "method": "POST", "path": PREDICT, "headers": [], "query_string": b"", "root_path": ""}
    asyncio.run(asyncio.wait_for(bench.app(scope, receive, send), 5))
    bench.batcher.close()
    bench.batcher.run(lambda: None)
    assert bench.model.computed == []


def test_a_body_that_does_not_arrive_is_not_waited_for() -> None:
    bench = Bench(limits=ServerConfig(request_timeout="20ms"))  # type: ignore[arg-type]

    async def slowly() -> Any:
        yield b'{"text":'
        await asyncio.sleep(10)

    assert bench.ask("POST", PREDICT, content=slowly()).status_code == 408

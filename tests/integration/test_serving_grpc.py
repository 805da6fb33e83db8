"""The gRPC calls over a model that answers when the test lets it: deadlines, cancellation, overload, draining."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import pytest

from daemon.config import ServerConfig
from daemon.serve.grpc_api import GrpcServer
from daemon.serve.oip import open_inference_pb2 as pb
from daemon.serve.router import Slot
from tests.artefacts import MODEL, version_of
from tests.integration.test_serving_http import GOLDEN, Bench, Sure

PATIENCE = 10.0
INFER = "/inference.GRPCInferenceService/ModelInfer"
LIMITS = ServerConfig(grpc_port=0, max_queue=2, drain_limit="5s")  # type: ignore[arg-type]


def request(text: str = "good") -> bytes:
    asked = pb.ModelInferRequest(model_name=MODEL, id="7")
    asked.inputs.add(name="text", datatype="BYTES", shape=[1]).contents.bytes_contents.append(text.encode())
    return asked.SerializeToString()


class Port:
    def __init__(self, bench: Bench) -> None:
        self.server = GrpcServer(bench.service, None, None)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.server.port.result(PATIENCE)}")
        self.infer = self.channel.unary_unary(INFER)


@contextmanager
def listening(bench: Bench) -> Iterator[Port]:
    port = Port(bench)
    try:
        yield port
    finally:
        bench.model.go.set()
        port.channel.close()
        port.server.stop()
        port.thread.join(PATIENCE)
        bench.batcher.close()
    assert not port.thread.is_alive()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_contents_are_answered_with_contents_and_metadata_names_version_and_request() -> None:
    with listening(Bench(limits=LIMITS)) as port:
        answer, call = port.infer.with_call(request(), timeout=PATIENCE)
        answered = pb.ModelInferResponse.FromString(answer)
        assert (answered.id, answered.model_version, list(answered.raw_output_contents)) == ("7", "2", [])
        assert [
            list(output.contents.bytes_contents or output.contents.fp32_contents) for output in answered.outputs
        ] == [
            [b"up"],
            [0.75],
            [0.25, 0.75],
        ]
        assert {("x-model-version", "2"), ("x-request-id", "7")} <= set(call.trailing_metadata())


def test_an_answer_to_a_text_that_was_cut_says_so() -> None:
    bench = Bench(limits=LIMITS)
    bench.model.cut = {"a long one"}
    with listening(bench) as port:
        told = []
        for text in ("good", "a long one"):
            answer = pb.ModelInferResponse.FromString(port.infer(request(text), timeout=PATIENCE))
            told.append({name: parameter.bool_param for name, parameter in answer.parameters.items()})
    assert told == [{}, {"truncated": True}]


def test_who_is_late_or_leaves_gives_the_place_in_the_queue_up() -> None:
    bench = Bench(limits=LIMITS)
    bench.model.go.clear()
    with listening(bench) as port:
        computed = port.infer.future(request("computed"), timeout=PATIENCE)
        until(lambda: bench.model.computed == ["computed"])
        with pytest.raises(grpc.RpcError) as late:
            port.infer(request("late"), timeout=0.2)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        left = port.infer.future(request("left"), timeout=PATIENCE)
        time.sleep(0.1)
        left.cancel()
        time.sleep(0.1)
        last = port.infer.future(request("last"), timeout=PATIENCE)
        time.sleep(0.1)
        bench.model.go.set()
        assert computed.result(PATIENCE) and last.result(PATIENCE)
    assert bench.model.computed == ["computed", "last"]


def test_beyond_the_queue_calls_are_refused_at_once_and_told_when_to_come_back() -> None:
    bench = Bench(limits=LIMITS)
    bench.model.go.clear()
    with listening(bench) as port:
        waiting = [port.infer.future(request("computed"), timeout=PATIENCE)]
        until(lambda: bench.model.computed == ["computed"])
        waiting += [port.infer.future(request("waits"), timeout=PATIENCE) for _ in range(2)]
        until(lambda: bench.batcher._texts == 2)
        with pytest.raises(grpc.RpcError) as full:
            port.infer(request("one more"), timeout=PATIENCE)
        assert full.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert ("grpc-retry-pushback-ms", "1000") in full.value.trailing_metadata()
        live = port.channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
        assert pb.ServerLiveResponse.FromString(live(b"", timeout=PATIENCE)).live
        bench.model.go.set()
        assert all(each.result(PATIENCE) for each in waiting)


def test_stopping_finishes_what_is_in_flight_and_takes_no_more() -> None:
    bench = Bench(limits=LIMITS)
    bench.model.go.clear()
    with listening(bench) as port:
        in_flight = port.infer.future(request("in flight"), timeout=PATIENCE)
        until(lambda: bench.model.computed == ["in flight"])
        port.server.stop()
        until(lambda: refused(port))
        bench.model.go.set()
        assert pb.ModelInferResponse.FromString(in_flight.result(PATIENCE)).id == "7"
        port.thread.join(PATIENCE)
        assert not port.thread.is_alive()


def refused(port: Port) -> bool:
    try:
        port.infer(request("late"), timeout=0.2)
    except grpc.RpcError as error:
        return error.code() is grpc.StatusCode.UNAVAILABLE
    return False


def test_without_a_champion_nothing_is_ready_and_calls_are_unavailable() -> None:
    with listening(Bench(loaded=(), limits=LIMITS)) as port:
        ready = port.channel.unary_unary("/inference.GRPCInferenceService/ServerReady")
        assert not pb.ServerReadyResponse.FromString(ready(b"", timeout=PATIENCE)).ready
        with pytest.raises(grpc.RpcError, match="no champion") as nobody:
            port.infer(request(), timeout=PATIENCE)
        assert nobody.value.code() is grpc.StatusCode.UNAVAILABLE
        assert ("grpc-retry-pushback-ms", "1000") in nobody.value.trailing_metadata()


def test_a_version_is_ready_by_its_own_answers() -> None:
    bench = Bench(limits=LIMITS)
    wrong = Sure()
    wrong.answer = None
    slots = {1: Slot(version_of(1), wrong, GOLDEN), 2: Slot(version_of(2), bench.model, GOLDEN)}
    bench.router.publish(slots[2], slots)
    with listening(bench) as port:
        ready = port.channel.unary_unary("/inference.GRPCInferenceService/ModelReady")
        for version, expected in (("1", False), ("2", True), ("", True)):
            asked = pb.ModelReadyRequest(name=MODEL, version=version).SerializeToString()
            assert pb.ModelReadyResponse.FromString(ready(asked, timeout=PATIENCE)).ready is expected


def test_a_fault_of_ours_is_internal_and_says_nothing_of_what_is_inside() -> None:
    with listening(Bench(limits=LIMITS)) as port:
        with pytest.raises(grpc.RpcError) as bug:
            port.infer(request("bug"), timeout=PATIENCE)
        assert bug.value.code() is grpc.StatusCode.INTERNAL
        assert bug.value.details() == "an error of the server's own; its log says more"

"""What the proof at the endpoint makes of each kind of answer."""

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import cast

import pytest

from daemon.core.artefact import Golden
from daemon.core.errors import UnavailableError
from daemon.serve.endpoint_proof import WHOLE, Endpoint, prove
from daemon.serve.swap_report import GoldenProof
from tests.artefacts import version_of

GOLDEN = Golden(["short", "also short"], [[0.0, 0.0]] * 2, 1e-3)


class Answering:
    """An endpoint of which each ask has the next of the answers; the last one from then on."""

    def __init__(self, *answers: tuple[int, bytes] | Exception) -> None:
        self._answers = list(answers)

    def predict(self, _text: str, _timeout: float) -> tuple[int, bytes]:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def answer(version: int, *probabilities: float) -> tuple[int, bytes]:
    named = dict(zip(version_of(version).labels, probabilities, strict=True))
    return 200, json.dumps({"version": version, "probabilities": named}).encode()


def proof(*answers: tuple[int, bytes] | Exception, clock: Iterator[float] | None = None) -> GoldenProof:
    endpoint = cast(Endpoint, Answering(*answers))
    return prove(endpoint, version_of(2), GOLDEN, monotonic=(clock or count(step=0.0)).__next__)


def test_answers_as_the_judge_saw_them_are_equal() -> None:
    found = proof(answer(2, 0.5, 0.5))
    assert (found.equal, found.texts) == (True, 2)
    assert found.largest_difference == pytest.approx(0)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (answer(2, 0.4, 0.6), "probabilities differ by 0.1"),
        (answer(1, 0.5, 0.5), "answers with version 1 instead of 2"),
        ((500, b"{}"), "answers 500"),
        ((200, b"{}"), "version"),
    ],
)
def test_any_other_answer_is_not(given: tuple[int, bytes], says: str) -> None:
    found = proof(answer(2, 0.5, 0.5), given)
    assert found.equal is False
    assert says in found.detail


def test_the_texts_together_have_a_limit_and_what_is_slow_speaks_against_no_version() -> None:
    class Slow:
        now, timeouts = 100.0, ()

        def predict(self, _text: str, timeout: float) -> tuple[int, bytes]:
            self.timeouts = (*self.timeouts, timeout)
            self.now += min(25.0, timeout)
            return answer(2, 0.5, 0.5)

    slow = Slow()
    many = Golden([f"short {number}" for number in range(9)], [[0.0, 0.0]] * 9, 1e-3)
    found = prove(cast(Endpoint, slow), version_of(2), many, monotonic=lambda: slow.now)
    assert slow.timeouts == (30.0, 30.0, 10.0)
    assert (found.equal, found.largest_difference, slow.now) == (None, None, 100.0 + WHOLE)
    assert found.detail == (
        "3 of 9 golden texts were answered: the 60 s for all of them are over; all are asked again later"
    )


@pytest.mark.parametrize("given", [(503, b"{}"), UnavailableError("no answer within 30 s")])
def test_no_room_for_the_question_says_nothing(given: tuple[int, bytes] | Exception) -> None:
    found = proof(answer(2, 0.5, 0.5), given, clock=count(step=7.0))
    assert found.equal is None
    assert found.detail


def test_an_application_that_has_stopped_says_nothing_of_the_version() -> None:
    async def answers_nobody(*_: object) -> None:
        asked.set()
        await asyncio.Event().wait()

    async def serving() -> None:
        endpoint.open(answers_nobody)
        proofs.append(pool.submit(prove, endpoint, version_of(2), GOLDEN))
        await asyncio.to_thread(asked.wait)

    endpoint, asked = Endpoint(), threading.Event()
    proofs: list[Future[GoldenProof]] = []
    with ThreadPoolExecutor() as pool:
        asyncio.run(serving())
        proofs.append(pool.submit(prove, endpoint, version_of(2), GOLDEN))
    assert [proof.result().equal for proof in proofs] == [None, None], "asked meanwhile, and asked afterwards"


def test_a_queue_that_is_full_for_a_moment_is_asked_again() -> None:
    assert proof((503, b"{}"), answer(2, 0.5, 0.5)).equal is True

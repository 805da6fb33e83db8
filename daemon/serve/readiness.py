"""Whether answers are right, not whether a flag is set: a version's golden texts, through the queue and the inference thread."""

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from daemon.core.artefact import Golden
from daemon.core.errors import OverloadedError
from daemon.core.types import Prediction
from daemon.serve.batcher import Batcher
from daemon.serve.ort_loader import softmax
from daemon.serve.router import Handle, Router

_BELIEVED = 1.0  # seconds for which a result stands, so that asking is no load
_PATIENCE = 2.0  # seconds for the golden answers
_BUSY_BELIEVED = 10.0  # seconds for which a server that is too busy to be asked is taken at its last word
_ANY_TEXTS = ("ready",)  # for a version that brought no golden ones


@dataclass(frozen=True, slots=True)
class _Found:
    """What a version answered. Times are monotonic; `passed` is when it last answered rightly."""

    at: float
    passed: float
    failure: str | None


class Readiness:
    """Safe from any thread."""

    def __init__(self, router: Router, batcher: Batcher, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._router = router
        self._batcher = batcher
        self._monotonic = monotonic
        self._asking = threading.Lock()
        self._found: Mapping[int, _Found] = {}  # replaced and never changed

    def known(self, number: int | None = None) -> bool:
        """Whether `failure` would answer at once."""
        return self._fresh(number or self._champion) is not None

    @property
    def _champion(self) -> int:
        served = self._router.served
        return served.number if served else 0

    def failure(self, number: int | None = None) -> str | None:
        """Why a version, or the champion, does not answer as it was judged; None when it does. May wait some seconds.

        Raises NotReadyError without a champion, NotFoundError for a version that is not loaded.
        """
        with self._router.handle(number, counted=False) as handle:
            found = self._fresh(handle.version.number)
        if found is None:  # what is known does not wait until another version has answered
            with self._asking, self._router.handle(number, counted=False) as handle:
                found = self._fresh(handle.version.number) or self._asked(handle)
        return found.failure

    def _fresh(self, number: int) -> _Found | None:
        found = self._found.get(number)
        return found if found is not None and self._monotonic() - found.at < _BELIEVED else None

    def _asked(self, handle: Handle) -> _Found:
        asked, loaded = handle.version.number, self._router.loaded
        found = self._check(handle, self._found.get(asked))
        self._found = {asked: found, **{n: f for n, f in self._found.items() if n in loaded and n != asked}}
        return found

    def _check(self, handle: Handle, before: _Found | None) -> _Found:
        passed = before.passed if before else -math.inf
        try:
            failure = self._wrong(handle)
            passed = passed if failure else self._monotonic()
        except (OverloadedError, TimeoutError) as error:
            # A long queue is no reason to be sent less; a queue that does not move is.
            lately = self._monotonic() - passed < _BUSY_BELIEVED
            failure = None if lately else str(error)
        except Exception as error:  # whatever a predictor that does not work raises
            failure = f"version {handle.version.number} cannot answer its golden texts: {error}"
        return _Found(self._monotonic(), passed, failure)

    def _wrong(self, handle: Handle) -> str | None:
        """Raises OverloadedError, TimeoutError, or whatever the predictor does."""
        golden = handle.golden
        answer = self._batcher.submit(handle.predictor, golden.texts if golden else _ANY_TEXTS)
        try:
            predictions = answer.result(_PATIENCE)
        except TimeoutError:
            answer.cancel()
            raise TimeoutError(f"no answer to the golden texts within {_PATIENCE:g} s") from None
        if golden and not reproduces(predictions, golden):
            return f"version {handle.version.number} answers its golden texts otherwise than when it was judged"
        return None


def reproduces(predictions: Sequence[Prediction], golden: Golden) -> bool:
    """Probabilities within the tolerance of the logits: softmax moves no further than they do."""
    given = np.asarray([prediction.probabilities for prediction in predictions])
    expected = softmax(np.asarray(golden.logits))
    return given.shape == expected.shape and bool((np.abs(given - expected) <= golden.tolerance).all())

"""Whether answers are right, not whether a flag is set: the champion's golden texts, through the queue and the inference thread."""

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from daemon.core.artefact import Golden
from daemon.core.errors import OverloadedError, RelearndError
from daemon.core.types import Prediction
from daemon.serve.batcher import Batcher
from daemon.serve.ort_loader import softmax
from daemon.serve.router import Handle, Router

_BELIEVED = 1.0  # seconds for which a result stands, so that asking is no load
_PATIENCE = 2.0  # seconds for the golden answers
_BUSY_BELIEVED = 10.0  # seconds for which a server that is too busy to be asked is taken at its last word
_ANY_TEXTS = ("ready",)  # for a version that brought no golden ones


class Readiness:
    """Safe from any thread."""

    def __init__(self, router: Router, batcher: Batcher, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._router = router
        self._batcher = batcher
        self._monotonic = monotonic
        self._asking = threading.Lock()
        self._version: int | None = None  # that the result is about
        self._checked = self._passed = -_BUSY_BELIEVED
        self._failure: str | None = None

    @property
    def known(self) -> bool:
        """Whether `failure` would answer at once."""
        champion = self._router.served
        fresh = self._monotonic() - self._checked < _BELIEVED
        return champion is None or (champion.number == self._version and fresh)

    def failure(self) -> str | None:
        """Why the champion does not answer as it was judged; None when it does, or when there is none. May wait some seconds."""
        with self._asking:
            if self._router.served is not None and not self.known:
                try:
                    with self._router.handle() as handle:
                        self._failure = self._check(handle)
                        self._version = handle.version.number
                except RelearndError as error:
                    self._failure = str(error)
                self._checked = self._monotonic()
            return self._failure

    def _check(self, handle: Handle) -> str | None:
        golden = handle.golden
        try:
            answer = self._batcher.submit(handle.predictor, golden.texts if golden else _ANY_TEXTS)
        except OverloadedError as error:
            return self._busy(handle, str(error))
        try:
            predictions = answer.result(_PATIENCE)
        except TimeoutError:
            answer.cancel()
            return self._busy(handle, f"no answer to the golden texts within {_PATIENCE:g} s")
        except Exception as error:  # whatever a predictor that does not work raises
            return f"version {handle.version.number} cannot answer its golden texts: {error}"
        if golden and not reproduces(predictions, golden):
            return f"version {handle.version.number} answers its golden texts otherwise than when it was judged"
        self._passed = self._monotonic()
        return None

    def _busy(self, handle: Handle, reason: str) -> str | None:
        """A long queue is no reason to be sent less; a queue that does not move is."""
        lately = self._monotonic() - self._passed < _BUSY_BELIEVED
        return None if lately and self._version == handle.version.number else reason


def reproduces(predictions: Sequence[Prediction], golden: Golden) -> bool:
    """Probabilities within the tolerance of the logits: softmax moves no further than they do."""
    given = np.asarray([prediction.probabilities for prediction in predictions])
    expected = softmax(np.asarray(golden.logits))
    return given.shape == expected.shape and bool((np.abs(given - expected) <= golden.tolerance).all())

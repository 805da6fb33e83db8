"""Whether the run that is going or expected is to stop, and why."""

from daemon.core.errors import RunCancelled, RunPutOff


class Cancellation:
    """`ask` is called by any thread, the others by the one that runs."""

    def __init__(self) -> None:
        self._run_id = ""
        self._reasons: list[RunCancelled] = []

    def expect(self, run_id: str) -> None:
        """It is the one from now on. Asked once more it changes nothing."""
        if run_id != self._run_id:
            self._reasons = []
            self._run_id = run_id

    def ask(self, run_id: str | None = None, why: RunCancelled | None = None) -> None:
        """None: whichever it is."""
        if run_id in (None, self._run_id):
            self._reasons.append(why or RunCancelled("the run was cancelled"))

    def check(self) -> None:
        """Raises what was asked first; but what ends a run for good goes before what puts it off."""
        reasons = list(self._reasons)
        if reasons:
            raise next((why for why in reasons if not isinstance(why, RunPutOff)), reasons[0])

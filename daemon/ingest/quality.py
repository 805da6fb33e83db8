"""What the policy asks of an example beyond being valid, each as a rule over a batch: which of its examples wait in quarantine."""

import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from re import Pattern

from daemon.core.states import QuarantineReason
from daemon.core.stream import Example
from daemon.policy.schema import QualityPolicy

Finding = tuple[int, QuarantineReason, str]  # the place in the batch, why, and the value with its limit


class TextRules:
    """The length of a text and what must or must not stand in it."""

    def __init__(self, policy: QualityPolicy) -> None:
        self._least, self._most = policy.min_chars, policy.max_chars
        self._must, self._must_not = _compiled(policy.must_match), _compiled(policy.must_not_match)
        self.any = policy.min_chars > 1 or any((policy.max_chars, policy.must_match, policy.must_not_match))

    def findings(self, examples: Sequence[Example]) -> Iterator[Finding]:
        for place, example in enumerate(examples):
            fault = self._fault(example.text)
            if fault:
                yield place, QuarantineReason.QUALITY, fault

    def _fault(self, text: str) -> str | None:
        if len(text) < self._least:
            return f"the text has {len(text)} characters; records.quality.min_chars is {self._least}"
        if self._most is not None and len(text) > self._most:
            return f"the text has {len(text)} characters; records.quality.max_chars is {self._most}"
        if self._must and not self._must.search(text):
            return "the text does not match records.quality.must_match"
        if self._must_not and self._must_not.search(text):
            return "the text matches records.quality.must_not_match"
        return None


class ShareCap:
    """Of the newest `window` stored examples at most `share` of `window` may have one value, also while there are fewer."""

    def __init__(self, share: float, window: int) -> None:
        self.most = int(share * window)
        self.window = window
        self._newest: deque[str] = deque()
        self._counts: Counter[str] = Counter()

    def over(self, values: Sequence[str]) -> list[int]:
        """Places of those that would be too many, were the others stored one after the other."""
        coming = Counter(values)
        if all(self._counts[value] + count <= self.most for value, count in coming.items()):
            return []
        counts, window = Counter(self._counts), deque(self._newest)
        over = []
        for place, value in enumerate(values):
            if counts[value] >= self.most:
                over.append(place)
                continue
            counts[value] += 1
            window.append(value)
            if len(window) > self.window:
                counts[window.popleft()] -= 1
        return over

    def add(self, values: Sequence[str]) -> None:
        """These were stored."""
        self._newest.extend(values)
        self._counts.update(values)
        while len(self._newest) > self.window:
            self._counts[self._newest.popleft()] -= 1


def _compiled(pattern: str | None) -> Pattern[str] | None:
    return None if pattern is None else re.compile(pattern)

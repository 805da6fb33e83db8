"""What the policy asks of an example beyond being valid, each as a rule over a batch: which of its examples wait in quarantine."""

import re
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import timedelta
from re import Pattern

from daemon.core.states import QuarantineReason
from daemon.core.stream import Example
from daemon.policy.schema import QualityPolicy
from daemon.runtime.arrow_examples import column, places_ahead
from daemon.settings.units import format_duration

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


def times_ahead(examples: Sequence[Example], most: timedelta) -> Iterator[Finding]:
    """Those that say they happened more than `most` after they were read."""
    places = places_ahead(examples, most)
    times = column(examples, "occurred_at") if places else []
    for place in places:
        detail = (
            f"its time is {times[place].isoformat()}, ahead of the clock it was read by; "
            f"records.quality.max_ahead is {format_duration(most)}; mend the producer's clock or unit of time"
        )
        yield place, QuarantineReason.FUTURE_TIME, detail


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

    @property
    def largest(self) -> float:
        """The share of the window that the most frequent value has."""
        return max(self._counts.values(), default=0) / self.window

    def add(self, values: Sequence[str]) -> None:
        """These were stored."""
        self._newest.extend(values)
        self._counts.update(values)
        while len(self._newest) > self.window:
            gone = self._newest.popleft()
            self._counts[gone] -= 1
            if not self._counts[gone]:
                del self._counts[gone]


class LabelAges:
    """Which labels are new: none but the newest `window` examples has them. What the first `window` bring is no news.

    To say so again after a start it must be given the newest 2 x `window` examples, and be told of the labels before them.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self._begun: int | None = None
        self._last = 0
        self._first: dict[str, int] = {}
        self._counts: Counter[str] = Counter()

    def add(self, labels: Sequence[str], seqs: Sequence[int]) -> None:
        """These were stored with these seqs, rising."""
        if not labels:
            return
        self._begun = seqs[0] if self._begun is None else self._begun
        self._last = seqs[-1]
        for label in {*labels} - self._first.keys():
            self._first[label] = seqs[labels.index(label)]
        self._counts.update(labels)

    def told(self, stored: Mapping[str, int]) -> None:
        """All that the store holds, by label: those of which it has more than were added are old."""
        self._first.update({label: 0 for label, count in stored.items() if count > self._counts[label]})

    def new_among(self, labels: Sequence[str], listed: Collection[str]) -> int:
        """How many of them are new and not listed."""
        if self._begun is None or self._last < self._begun + self.window - 1:
            return 0
        since = max(self._begun + self.window, self._last - self.window + 1)
        return sum(
            count
            for label, count in Counter(labels).items()
            if label not in listed and self._first.get(label, since) >= since
        )


def _compiled(pattern: str | None) -> Pattern[str] | None:
    return None if pattern is None else re.compile(pattern)

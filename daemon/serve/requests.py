"""What REST and gRPC ask of every request alike: how many texts, none of them empty, and an id."""

import itertools
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from daemon.core.errors import UsageError

GOLDEN_ID = "relearnd-golden-"
"""How the ids begin with which we ask ourselves for golden texts. Those answers are nobody's, and not logged."""

_ID = re.compile(r"[!-~]{1,128}")
_LONGEST_LABEL = 1000  # characters


@dataclass(frozen=True, slots=True)
class Label:
    """What became known later of the answer with this id."""

    id: str
    label: str


def check_texts(texts: Sequence[str], *, most: int) -> None:
    """Raises UsageError."""
    if not texts:
        raise UsageError("there is no text; send at least one")
    if len(texts) > most:
        raise UsageError(f"{len(texts)} texts in one request; send at most {most}")
    for index, text in enumerate(texts):
        if not text.strip():
            raise UsageError(f"text {index} is empty; leave it out")


def check_id(id: str) -> str:
    """Raises UsageError. An id goes into headers, topics and files as it is."""
    if not _ID.fullmatch(id):
        raise UsageError("an id is 1 to 128 printable ASCII characters without spaces; send another one, or none")
    return id


def check_labels(labels: Sequence[Label], *, most: int) -> None:
    """Raises UsageError."""
    if not labels:
        raise UsageError("there is no label; send at least one")
    if len(labels) > most:
        raise UsageError(f"{len(labels)} labels in one request; send at most {most}")
    for each in labels:
        check_id(each.id)
        if not 0 < len(each.label.strip()) <= _LONGEST_LABEL:
            raise UsageError(f"the label of '{each.id}' must have 1 to {_LONGEST_LABEL} characters")


class RequestIds:
    """Ids for requests that bring none: unique without asking anybody, and cheap."""

    def __init__(self) -> None:
        self._prefix = uuid.uuid4().hex[:16]
        self._count = itertools.count(1)

    def __call__(self, given: str | None) -> str:
        """The client's own id, or a new one. Safe from any thread. Raises UsageError."""
        return check_id(given) if given else f"{self._prefix}-{next(self._count):x}"


def text_ids(id: str, texts: int) -> Sequence[str]:
    """The id of each text: that of the request when it has one text, else with -0, -1, ... behind it."""
    return [id] if texts == 1 else [f"{id}-{index}" for index in range(texts)]

"""The closed sets: every state, split, trigger and outcome that has a name."""

from enum import StrEnum


class Split(StrEnum):
    """What an example is for. Assigned once, at ingest, by a hash of its id; never moved."""

    TRAIN = "train"
    VALIDATION = "validation"  # seen by the worker while it trains: early stopping
    HOLDOUT = "holdout"  # never trained on: the gates judge by it


class RejectReason(StrEnum):
    """Why a record became a dead letter. The operator's guide explains each."""

    NO_VALUE = "no_value"
    TOO_BIG = "too_big"
    NOT_UTF8 = "not_utf8"
    NOT_JSON = "not_json"
    NOT_AN_OBJECT = "not_an_object"
    DUPLICATE_KEY = "duplicate_key"
    NON_FINITE = "non_finite"
    TOO_DEEP = "too_deep"
    BAD_UNICODE = "bad_unicode"
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    EMPTY_TEXT = "empty_text"
    BAD_TIME = "bad_time"
    BAD_SPLIT = "bad_split"
    UNKNOWN_LABEL = "unknown_label"


class GapReason(StrEnum):
    """Why offsets hold no record for us."""

    NOT_RETURNED = "not_returned"  # compaction or transaction markers: inside the log, nothing there
    RETENTION = "retention"  # the broker deleted them before we read them


class TriggerKind(StrEnum):
    """A reason to train."""

    BOOTSTRAP = "bootstrap"
    DRIFT = "drift"
    PERFORMANCE = "performance"
    VOLUME = "volume"
    SCHEDULE = "schedule"
    OPERATOR = "operator"


class Action(StrEnum):
    """What a decision says to do."""

    WAIT = "wait"
    TRAIN = "train"
    PROMOTE = "promote"
    REJECT = "reject"
    ASK = "ask"  # the gates passed, the policy wants an operator's promote
    ROLL_BACK = "roll_back"
    PAUSE = "pause"
    RESUME = "resume"


class Outcome(StrEnum):
    """What three-valued judgements can say. Only PASS ever promotes."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


class RunState(StrEnum):
    """Where a training attempt stands. The last four are final."""

    TRAINING = "training"
    JUDGING = "judging"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    ABANDONED = "abandoned"  # the learner died while it ran

    @property
    def final(self) -> bool:
        return self not in (RunState.TRAINING, RunState.JUDGING)


class Alias(StrEnum):
    """Movable names for versions."""

    CHAMPION = "champion"
    CHALLENGER = "challenger"
    PREVIOUS = "previous"


class ServableState(StrEnum):
    """Where a version stands inside a server."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    DRAINING = "draining"
    UNLOADED = "unloaded"

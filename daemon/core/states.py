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
    UNKNOWN_SOURCE = "unknown_source"
    SCHEMA_UNKNOWN = "schema_unknown"
    SCHEMA_MISMATCH = "schema_mismatch"


class QuarantineReason(StrEnum):
    """Why a valid record is not trusted yet. An operator releases or drops it."""

    UNKNOWN_LABEL = "unknown_label"
    LABEL_CONFLICT = "label_conflict"  # the same id or the same text came with another label
    NEW_SOURCE = "new_source"
    SOURCE_SHARE = "source_share"  # its source gave more than its share
    QUALITY = "quality"  # a data-quality check of the policy
    FUTURE_TIME = "future_time"  # it says that it happened long after it was read
    TOO_MANY_LABELS = "too_many_labels"  # the store has as many as it counts


class SkipReason(StrEnum):
    """Why offsets whose records were read hold nothing: nothing is missing, and nothing is kept."""

    TOMBSTONE = "tombstone"
    DUPLICATE = "duplicate"  # the store has the same example already
    DROPPED = "dropped"  # by an operator, from quarantine or the dead letters
    EXPIRED = "expired"  # by retention
    ERASED = "erased"  # a person was forgotten


class GapReason(StrEnum):
    """Why offsets hold no record for us."""

    NOT_RETURNED = "not_returned"  # compaction or transaction markers: inside the log, nothing there
    RETENTION = "retention"  # the broker deleted them before we read them
    SKIPPED = "skipped"  # an operator gave them up


class TroubleReason(StrEnum):
    """Why a partition is not read while the others are. An operator, or time, mends it."""

    LOG_REPLACED = (
        "log_replaced"  # another record stands where the last one was read: topic recreated, or cut and written anew
    )
    LOG_SHORT = "log_short"  # the log ends before the store's next offset: the same, or the wrong brokers
    RETENTION = "retention"  # the broker deleted what was not read yet, and kafka.on_gap says halt
    DAMAGED = "damaged"  # a batch with a wrong checksum, an unknown codec or a broken structure; tried again and again


class HalfKind(StrEnum):
    """Which half of an example a record of a predictions or labels topic brought."""

    PREDICTION = "prediction"
    LABEL = "label"


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
    CANARY = "canary"
    SHADOW = "shadow"
    PAUSE = "pause"
    RESUME = "resume"
    RETRAIN = "retrain"
    CANCEL = "cancel"
    ACCEPT_LOG = "accept_log"
    RESUME_INGEST = "resume_ingest"
    RELEASE = "release"  # quarantined records become examples
    REDRIVE = "redrive"  # dead letters are tried again
    DROP = "drop"  # records put aside are deleted


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
    CANARY = "canary"
    SHADOW = "shadow"


class ServableState(StrEnum):
    """Where a version stands inside a server."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    DRAINING = "draining"
    UNLOADED = "unloaded"

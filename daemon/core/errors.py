"""Every error of ours. Vendor exceptions are mapped to one of these where the vendor is called, with the cause kept.

RelearndError
├── ConfigError               78  a file says something that cannot be; names path, line, value, limit
├── UsageError                64  the operator asked for something that cannot be
├── NotFoundError             64  no such version, run, model or example
├── ConflictError             75  somebody moved first: a stale generation, a run already going
├── LockedError               75  another process holds the store
├── SourceError               75  the stream does not answer; retried with backoff
│   └── UnauthorizedError         the brokers refuse us: password, token, certificate or access list
├── StoreError                74  the store failed; restart re-reads the disk
│   ├── StaleBatchError           the batch does not start where the store stands: re-read and seek
│   ├── OutcomeUnknownError       COMMIT raised: it may or may not be durable; reopen and re-read
│   └── OutOfMemoryError          store.memory_limit is too little for it; nothing was changed
├── DriftError                70  the drift child failed; learning goes on without
├── RunError                  70  the worker failed; the champion stays
│   └── RunCancelled              an operator or a stop asked for it
│       └── RunPutOff                 the disk has no room for it, or the learner stops; what it was begun for is still due
├── InputOutputError          74  the operating system cannot read or write a file: no room, a damaged disk, too many open
│   └── PermissionDeniedError 77  we may not: the wrong user, or a file system that is read-only
├── ArtefactError             74  a file of a version is missing, damaged or answers wrongly; never served
└── UnavailableError          69  the learner or server one talks to does not answer
    ├── NotReadyError             no version is loaded yet, or the server is stopping
    ├── ExpiredError              the time that a request was given is over; try again
    └── OverloadedError           more requests wait than the limit allows; try again
"""

import errno


class RelearndError(Exception):
    """`str()` is a sentence for an operator: what is wrong, with the value and the limit, and what to do."""

    exit_code = 70


class ConfigError(RelearndError):
    exit_code = 78


class UsageError(RelearndError):
    exit_code = 64


class NotFoundError(RelearndError):
    exit_code = 64


class ConflictError(RelearndError):
    exit_code = 75


class LockedError(RelearndError):
    exit_code = 75


class SourceError(RelearndError):
    exit_code = 75


class UnauthorizedError(SourceError):
    pass


class StoreError(RelearndError):
    exit_code = 74


class StaleBatchError(StoreError):
    pass


class OutcomeUnknownError(StoreError):
    pass


class OutOfMemoryError(StoreError):
    pass


class DriftError(RelearndError):
    pass


class RunError(RelearndError):
    pass


class RunCancelled(RunError):
    pass


class RunPutOff(RunCancelled):
    def __init__(self, message: str, *, by: str) -> None:
        """`by`: who put it off, `types.DISK` or `types.STOP`."""
        super().__init__(message)
        self.by = by


class InputOutputError(RelearndError):
    exit_code = 74


class PermissionDeniedError(InputOutputError):
    exit_code = 77


class ArtefactError(RelearndError):
    exit_code = 74


class UnavailableError(RelearndError):
    exit_code = 69


class NotReadyError(UnavailableError):
    pass


class ExpiredError(UnavailableError):
    pass


class OverloadedError(UnavailableError):
    pass


_MAY_NOT = (errno.EACCES, errno.EPERM, errno.EROFS)


def of_system(error: OSError) -> InputOutputError:
    """The same in our words, for an operator."""
    kind = PermissionDeniedError if error.errno in _MAY_NOT else InputOutputError
    what = error.strerror or str(error)
    return kind(f"{error.filename}: {what}" if error.filename else what)

"""What the operating system refuses ends a loop, and a command, with the exit code that README gives."""

import errno
import json
import sys
import threading
from pathlib import Path

import pytest

from daemon import cli
from daemon.core.errors import StoreError
from daemon.runtime.loops import Loop


@pytest.mark.parametrize(
    ("failure", "exit_code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 74),
        (OSError(errno.EMFILE, "Too many open files"), 74),
        (OSError(errno.EROFS, "Read-only file system"), 77),
        (PermissionError(errno.EACCES, "Permission denied"), 77),
        (StoreError("the store failed"), 74),
        (ValueError("of our own"), 70),
    ],
)
def test_a_loop_that_dies_says_why_by_its_exit_code(failure: Exception, exit_code: int) -> None:
    def dies(_stop: threading.Event, _beat: object) -> None:
        raise failure

    loop = Loop("upkeep", threading.Event(), dies, lambda: None)
    loop._thread.join()
    assert loop.exit_code == exit_code


def test_a_command_that_may_not_read_says_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def may_not() -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "store.duckdb"))

    monkeypatch.setattr(cli, "app", may_not)
    for arguments in (["relearnd", "doctor"], ["relearnd", "doctor", "--json"]):
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 77
    plain, as_json = capsys.readouterr().err.splitlines()
    assert plain == f"relearnd: {tmp_path / 'store.duckdb'}: Permission denied"
    assert json.loads(as_json) == {"error": plain.removeprefix("relearnd: "), "code": 77}

"""A learner's writing half in a process of its own, told what to do line by line: `python -m tests.faults.writer FOLDER`.

Says `open`, then one line for each command; ends with the exit code that a learner would have.
"""

import os
import sys
from pathlib import Path

from daemon.core.errors import RelearndError
from daemon.core.states import Split
from daemon.core.stream import Advance, Batch, Example, Position
from daemon.store.duckdb_store import DuckdbStore
from daemon.testing.clock import START
from tests.faults.life import STORE, ZERO, opened


def main() -> int:
    folder = Path(sys.argv[1])
    try:
        store = opened(folder)
        print("open", flush=True)
        for line in sys.stdin:
            if line.strip() == "end":
                break
            obey(store, folder, line.split())
    except RelearndError as error:
        print(f"failed {error}", flush=True)
        close(locals().get("store"))
        return error.exit_code
    store.close()
    return 0


def obey(store: DuckdbStore, folder: Path, command: list[str]) -> None:
    match command:
        case ["commit", count]:
            commit(store, int(count))
            print("committed", store.next_offsets()[ZERO], flush=True)
        case ["drop-duckdb-lock"]:
            # What any code in this process does to a POSIX lock that opens the file by its path and closes it again.
            for file in filter(Path.is_file, folder.glob(f"{STORE}*")):
                file.read_bytes()
            print("dropped", flush=True)


def commit(store: DuckdbStore, count: int) -> None:
    stands = store.next_offsets().get(ZERO)
    first = stands or 0
    examples = [
        Example(
            Position(*ZERO, offset), f"{os.getpid()}-{offset}", f"text {offset}", "yes", START, START, "s", Split.TRAIN
        )
        for offset in range(first, first + count)
    ]
    store.commit(Batch(examples, [], [], {ZERO: Advance(stands, first + count)}))


def close(store: DuckdbStore | None) -> None:
    """As a learner does on its way out, whatever ended it."""
    if store is not None:
        store.close()


if __name__ == "__main__":
    sys.exit(main())

"""What every trainer promises, shown on the fake one and on the launcher with a worker in a few lines."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.core.errors import RunCancelled, RunError, RunPutOff
from daemon.core.ports import Trainer
from daemon.core.types import Progress, RunResult, RunSpec
from daemon.policy.schema import Policy, TrainingPolicy
from daemon.runs.launcher import WorkerLauncher
from daemon.runs.run_folder import RunFolder
from daemon.runtime.child import Child
from daemon.testing.trainer import FakeTrainer, HangsUntilCancelled
from tests.artefacts import paper_run

# Does what the run's id says.
WORKER = """
import dataclasses, os, pathlib, signal, sys, time
from datetime import UTC, datetime
from daemon.core.types import Progress
from daemon.runs.run_folder import RunFolder
from tests.artefacts import paper_run
run = RunFolder(pathlib.Path(sys.argv[1]))
does = run.path.name
run.append_progress(Progress(datetime.now(UTC), "train", 0, 1, "step"))
if does.startswith("fails"):
    sys.exit("the base model is missing")
if does.startswith("is-killed"):
    os.kill(os.getpid(), signal.SIGKILL)
if does.startswith("is-stopped"):
    sys.exit(75)
if does.startswith("hangs"):
    time.sleep(600)
result = paper_run(run.path).result
if does.startswith("mistaken"):
    result = dataclasses.replace(result, run_id="another")
if not does.startswith("forgets"):
    run.write_result(result)
"""


def finishes(spec: RunSpec) -> RunResult:
    return paper_run(Path(spec.run_id)).result


def fake() -> FakeTrainer:
    return FakeTrainer([RunError("the base model is missing"), HangsUntilCancelled(), finishes])


def launcher() -> WorkerLauncher:
    return WorkerLauncher([sys.executable, "-c", WORKER], nice=0)


def prepared(folder: Path, **limits: str) -> tuple[Path, RunSpec]:
    folder.mkdir()
    spec = paper_run(folder).spec
    RunFolder(folder).write_request(spec, Policy(training=TrainingPolicy.model_validate(limits)))
    return folder, spec


@pytest.mark.parametrize("make", [fake, launcher])
def test_failure_cancelling_and_success_one_after_the_other(make: Callable[[], Trainer], tmp_path: Path) -> None:
    trainer = make()
    trainer.cancel()  # nothing is going: nothing happens

    with pytest.raises(RunError, match="the base model is missing") as failure:
        trainer.train(*prepared(tmp_path / "fails"), ignore)
    assert not isinstance(failure.value, RunCancelled)

    with pytest.raises(RunCancelled):
        trainer.train(*prepared(tmp_path / "hangs"), lambda _: cancel_from_another_thread(trainer))

    seen: list[Progress] = []
    result = trainer.train(*prepared(tmp_path / "works"), seen.append)
    assert result.run_id == "works"
    assert [progress.stage for progress in seen] == ["train"]


@pytest.mark.parametrize("make", [fake, launcher])
@pytest.mark.parametrize("reasons", [[RunPutOff("9% free", by="disk"), None], [None, RunPutOff("9% free", by="disk")]])
def test_what_ends_a_run_for_good_goes_before_what_puts_it_off(
    make: Callable[[], Trainer], reasons: list[RunPutOff | None], tmp_path: Path
) -> None:
    def stop(_: Progress) -> None:
        for why in reasons:
            trainer.cancel(why=why)

    trainer = make()
    with pytest.raises(RunError):
        trainer.train(*prepared(tmp_path / "fails"), ignore)
    with pytest.raises(RunCancelled) as ended:
        trainer.train(*prepared(tmp_path / "hangs"), stop)
    assert not isinstance(ended.value, RunPutOff)


@pytest.mark.parametrize("ends", ["is-stopped", "is-killed"])
def test_a_run_is_put_off_also_where_its_worker_ends_before_that_is_heard(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ends: str
) -> None:
    """As when a supervisor stops learner and worker at once."""
    trainer, wait = launcher(), Child.wait

    def wait_and_hear(child: Child, timeout: float) -> int | None:
        code = wait(child, timeout)
        if code is not None:
            trainer.cancel(why=RunPutOff("the learner was stopped", by="stop"))
        return code

    monkeypatch.setattr(Child, "wait", wait_and_hear)
    with pytest.raises(RunPutOff):
        trainer.train(*prepared(tmp_path / ends), ignore)


@pytest.mark.parametrize("make", [fake, launcher])
def test_a_run_that_is_cancelled_while_its_folder_is_prepared_never_starts(
    make: Callable[[], Trainer], tmp_path: Path
) -> None:
    trainer = make()
    folder, spec = prepared(tmp_path / "fails")
    trainer.expect(spec.run_id)
    trainer.check()
    trainer.cancel("another run")
    trainer.check()
    trainer.cancel(spec.run_id)
    with pytest.raises(RunCancelled):
        trainer.train(folder, spec, lambda _: pytest.fail("it started"))
    assert not (folder / "worker.log").exists()
    with pytest.raises(RunError, match="the base model is missing") as failure:  # another run, of which nobody said so
        trainer.train(*prepared(tmp_path / "fails-too"), ignore)
    assert not isinstance(failure.value, RunCancelled)


def test_what_is_large_in_a_folder_is_given_back_and_what_was_said_stays(tmp_path: Path) -> None:
    trainer = launcher()
    folder, spec = prepared(tmp_path / "hangs")
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "train.parquet").write_bytes(b"many")
    (folder / "bases" / "fp32").mkdir(parents=True)
    with pytest.raises(RunPutOff):
        trainer.train(folder, spec, lambda _: trainer.cancel(why=RunPutOff("9% free", by="disk")))
    said = {"run.json", "policy.json", "progress.jsonl", "worker.log"}
    assert {each.name for each in folder.iterdir()} >= said | {"data", "bases"}
    trainer.give_room_back(folder)
    assert {each.name for each in folder.iterdir()} == said
    trainer.give_room_back(tmp_path / "never made")


def test_a_worker_killed_in_mid_run_has_no_result(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="SIGKILL"):
        launcher().train(*prepared(tmp_path / "is-killed"), ignore)


def test_a_worker_that_ends_well_without_a_result_has_failed(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"result\.json"):
        launcher().train(*prepared(tmp_path / "forgets"), ignore)


def test_the_result_of_another_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="another"):
        launcher().train(*prepared(tmp_path / "mistaken"), ignore)


@pytest.mark.parametrize("limit", ["time_limit", "stall_limit"])
def test_a_worker_that_goes_on_too_long_is_stopped(limit: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=limit):
        launcher().train(*prepared(tmp_path / "hangs", **{limit: "1s"}), ignore)


def test_an_interpreter_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="/no/python"):
        WorkerLauncher(["/no/python"], nice=0).train(*prepared(tmp_path / "works"), ignore)


def test_a_run_beyond_the_script_fails() -> None:
    with pytest.raises(RunError, match="not in the script"):
        FakeTrainer().train(Path(), paper_run(Path("r")).spec, ignore)


def ignore(_: Progress) -> None:
    pass


def cancel_from_another_thread(trainer: Trainer) -> None:
    thread = threading.Thread(target=trainer.cancel)
    thread.start()
    thread.join()

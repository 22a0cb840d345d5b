"""Settings from files: secrets in one file each, and the YAML file of the reference that CONFIG_PATH names.

docs/contract.md, section 22, lists the keys of that file. Those without a setting here are accepted and have no effect.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import PydanticBaseSettingsSource

from app.errors import Fatal
from app.go_duration import parse_duration

MIB = 1024 * 1024
TLS_PAIR = ("tls.crt", "tls.key")
CONFIG_KEYS = {
    "server.port": "port",
    "server.host": "host",
    "server.healthPort": "health_port",
    "server.metricsPort": "metrics_port",
    "server.maxBatchSize": "batch_events_max",
    "server.maxBodySize": "body_bytes_max",
    "server.signerCertDir": "signer_cert_dir",
    "server.shutdownTimeout": "shutdown_timeout_ms",
    "server.endpointPropagationDelay": "propagation_delay_ms",
    "database.maxOpenConns": "pool_connections_max",
    "database.statementTimeout": "statement_timeout_ms",
    "logging.level": "log_level",
}
CONFIG_SECTIONS = {
    *("environment", "server", "logging", "database", "redis", "retention", "audit", "tlsProfile", "telemetry"),
}
VARIABLES = {"PORT": "port", "HEALTH_PORT": "health_port", "POD_NAMESPACE": "kubernetes_namespace"}
_PORT_MIN = 1024
_LEVELS = {"WARN": "WARNING", "FATAL": "ERROR"}
_CLAMPED = {
    "body_bytes_max": (MIB, 50 * MIB),
    "propagation_delay_ms": (1_000, 30_000),
    "shutdown_timeout_ms": (30_000, 120_000),
}
_CONFIG_DEFAULTS = {
    "health_port": 8081,
    "metrics_port": 9090,
    "pool_connections_max": 25,
    "propagation_delay_ms": 5_000,
    "shutdown_timeout_ms": 60_000,
}
"""Defaults of the reference that differ from ours; they apply if there is a file."""
_NANOSECONDS_PER_MS = 1_000_000


class SecretFiles(PydanticBaseSettingsSource):
    """Secrets from files: DATASTORAGE_DATABASE_URL_FILE names the file that contains DATASTORAGE_DATABASE_URL."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError  # as in ConfigFile

    def __call__(self) -> dict[str, Any]:
        values = {}
        for name, field in self.settings_cls.model_fields.items():
            path = os.environ.get(f"DATASTORAGE_{name.upper()}_FILE")
            if path and field.annotation in {SecretStr, SecretStr | None}:
                try:
                    values[name] = Path(path).read_text("utf-8").strip()
                except (OSError, UnicodeDecodeError) as error:
                    raise Fatal(
                        f"Failed to load secrets: cannot read DATASTORAGE_{name.upper()}_FILE: {error}"
                    ) from None
        return values


class ConfigFile(PydanticBaseSettingsSource):
    """The YAML file of CONFIG_PATH, and the variables without the prefix DATASTORAGE_, which override it."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError  # the whole file is read at once, in __call__

    def __call__(self) -> dict[str, Any]:
        path = os.environ.get("CONFIG_PATH")
        values = dict(_from_yaml(Path(path), self.settings_cls.model_fields)) if path else {}
        for variable, field in VARIABLES.items():
            if os.environ.get(variable):
                values[field] = os.environ[variable]
        return values


def _from_yaml(path: Path, fields: dict[str, FieldInfo]) -> Iterator[tuple[str, Any]]:
    try:
        document = yaml.safe_load(path.read_text("utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise Fatal(f"Failed to load configuration file {path}: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict) or set(document) - CONFIG_SECTIONS:
        raise Fatal(
            f"Invalid configuration: {path} may hold only {', '.join(sorted(CONFIG_SECTIONS))} at its top level"
        )
    yield from _CONFIG_DEFAULTS.items()
    for key, field in CONFIG_KEYS.items():
        section, _, name = key.partition(".")
        value = _mapping(document, section).get(name)
        if value is not None:
            yield field, _in_our_units(field, value, fields[field].default)
    yield from _server_settings(_mapping(document, "server"))
    if document.get("tlsProfile") == "Modern":
        yield "tls_min_version", "1.3"
    audit, database = _mapping(document, "audit"), _mapping(document, "database")
    if secrets := audit.get("hashKeySecretsFile"):
        yield "hash_key", _secret(secrets, audit.get("hashKeyKey", "hashKey"), path)
    if database:
        yield "database_url", _database_url(database, path)
    if document.get("environment") == "production":
        _refuse_unsafe_production(_mapping(document, "server"), database)


def _refuse_unsafe_production(server: dict[str, Any], database: dict[str, Any]) -> None:
    if database.get("sslMode") == "disable":
        raise Fatal("Invalid configuration: environment production needs a database.sslMode that is not disable")
    if "*" in (server.get("corsAllowedOrigins") or ()):
        raise Fatal("Invalid configuration: environment production allows no * in server.corsAllowedOrigins")


def _server_settings(server: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    if origins := server.get("corsAllowedOrigins"):
        if not (isinstance(origins, list) and all(isinstance(one, str) for one in origins)):
            raise Fatal("Invalid configuration: server.corsAllowedOrigins has to be a list of strings")
        yield "cors_origins", ",".join(origins)
    directory = _mapping(server, "tls").get("certDir")
    if directory and all((Path(directory) / name).exists() for name in TLS_PAIR):
        yield "tls_dir", directory  # without a pair the reference serves without TLS
    limit = _mapping(server, "rateLimit")
    if limit.get("enabled"):
        rate, burst = _number(limit, "requestsPerSecond", 50), _number(limit, "burst", 100)
        # The reference has a token bucket. This is the most that it can let through in a window of ten seconds.
        yield "read_rate", f"{burst + 10 * rate:.0f}/10 second"


def _mapping(document: dict[str, Any], name: str) -> dict[str, Any]:
    mapping = document.get(name) or {}
    if not isinstance(mapping, dict):
        raise Fatal(f"Invalid configuration: {name} has to be a mapping, not a {type(mapping).__name__}")
    return mapping


def _number(section: dict[str, Any], name: str, default: float) -> float:
    number = section.get(name, default)
    if not isinstance(number, int | float) or number <= 0:
        raise Fatal(f"Invalid configuration: {name} has to be a number above 0, not {number!r}")
    return number


def _milliseconds(text: str) -> int:
    try:
        nanoseconds = parse_duration(text)
    except ValueError:
        nanoseconds = -1
    if nanoseconds < 0:
        raise Fatal(f"Invalid configuration: {text!r} is not a duration such as 30s or 1m30s")
    return nanoseconds // _NANOSECONDS_PER_MS


def _in_our_units(field: str, value: Any, default: Any) -> Any:
    """Go durations become milliseconds, values are clamped as the reference does, and a batch limit of 0 is the default."""
    if field.endswith("_ms") and isinstance(value, str):
        value = _milliseconds(value)
    if field in _CLAMPED and isinstance(value, int):
        least, most = _CLAMPED[field]
        return min(max(value, least), most)
    if field == "batch_events_max" and value == 0:
        return default
    if field == "port" and isinstance(value, int) and value < _PORT_MIN:
        raise Fatal(f"Invalid configuration: server.port has to be {_PORT_MIN} to 65535, not {value}")
    if field == "log_level":
        level = str(value).upper()
        return _LEVELS.get(level, level)
    return value


def _secret(secrets: str, key: str, path: Path, default: str | None = None) -> str:
    """One value of a secrets file, which is a small YAML map."""
    try:
        content = yaml.safe_load(Path(secrets).read_text("utf-8")) or {}
        return str(content[key] if default is None else content.get(key, default))
    except OSError as error:
        raise Fatal(f"Failed to load secrets of {path} from {secrets}: {error}") from None
    except (
        ValueError,
        yaml.YAMLError,
        LookupError,
        TypeError,
        AttributeError,
    ):  # their messages can contain the secrets
        raise Fatal(f"Failed to load secrets of {path} from {secrets}: expected a YAML map with {key}") from None


def _database_url(database: dict[str, Any], path: Path) -> str:
    user, password = str(database.get("user", "postgres")), ""
    if secrets := database.get("secretsFile"):
        user = _secret(secrets, database.get("usernameKey", "username"), path, user)
        password = _secret(secrets, database.get("passwordKey", "password"), path)
    where = f"{database.get('host', 'localhost')}:{database.get('port', 5432)}/{database.get('name', 'datastorage')}"
    return f"postgresql://{quote(user, '')}:{quote(password, '')}@{where}?sslmode={database.get('sslMode', 'prefer')}"

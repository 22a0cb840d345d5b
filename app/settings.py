"""Every setting of the service, read once at start: environment, then `.env`, then the YAML file that CONFIG_PATH names."""

import os
import re
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote

import yaml
from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from app.errors import Fatal

MIB = 1024 * 1024
TLS_PAIR = ("tls.crt", "tls.key")
Port = Annotated[int, Field(ge=1, le=65535)]


class Settings(BaseSettings):
    """Names in the environment are these in upper case behind DATASTORAGE_."""

    model_config = SettingsConfigDict(
        env_prefix="DATASTORAGE_", env_file=".env", frozen=True, extra="forbid", dotenv_filtering="match_prefix"
    )

    database_url: SecretStr | None = Field(
        None,
        description="Postgres to use, postgresql://user:password@host/database; unset: an embedded one is started. DATASTORAGE_DATABASE_URL_FILE names a file that holds it",
    )
    data_dir: Path | None = Field(
        None, description="where the embedded Postgres keeps its data; unset: the user's state directory"
    )
    migrate: bool = Field(
        default=False, description="bring the schema up before serving; always done for the embedded Postgres"
    )
    log_name: str | None = Field(
        None,
        max_length=200,
        description="name of the log, part of every hash; written once by the first migration, a different one later is refused",
    )
    unsafe_database: bool = Field(
        default=False, description="accept a server that runs with fsync, full_page_writes or synchronous_commit off"
    )

    host: str = Field("127.0.0.1", description="address that the ports are bound to")
    port: Port = Field(8080, description="port of the API")
    health_port: Port | None = Field(None, description="further port for /healthz and /readyz")
    metrics_port: Port | None = Field(None, description="further port for /metrics")
    allow_unauthenticated: bool = Field(
        default=False, description="bind beyond loopback although everybody who reaches the port may read and write"
    )

    auth: str = Field(
        "none",
        description="who may call, one or several of kubernetes, oidc, tokens with commas between them; none: everybody",
    )
    auth_cache_ms: int = Field(
        10_000,
        ge=0,
        le=300_000,
        description="time for which an answer about a token is kept, so at most that long a revoked one still works",
    )
    auth_cache_entries_max: int = Field(10_000, ge=1, description="most tokens of which an answer is kept")
    auth_timeout_ms: int = Field(
        5_000, ge=100, le=60_000, description="longest wait for the Kubernetes API server or the issuer's keys"
    )
    tokens_file: Path | None = Field(
        None, description="file of names, roles and SHA-256 digests of tokens; `datastorage token create` makes entries"
    )
    oidc_issuer: str | None = Field(None, description="issuer of the JSON Web Tokens to take, as in their iss")
    oidc_audience: str | None = Field(None, description="what their aud has to name")
    oidc_jwks_url: str | None = Field(None, description="where the issuer's keys are; unset: where its discovery says")
    oidc_name_claim: str = Field("sub", description="claim that names the caller")
    oidc_roles_claim: str = Field(
        "groups", description="claim that holds what oidc_roles translates; dots lead into objects: realm_access.roles"
    )
    oidc_roles: dict[str, Literal["reader", "writer", "auditor", "admin"]] = Field(
        {}, description='which value of that claim is which role, as JSON: {"sre": "reader", "audit-team": "auditor"}'
    )
    kubernetes_url: str = Field(
        "https://kubernetes.default.svc", description="the Kubernetes API server that reviews tokens and access"
    )
    kubernetes_token_file: Path = Field(
        Path("/var/run/secrets/kubernetes.io/serviceaccount/token"),
        description="token of this service's own account, by which it asks",
    )
    kubernetes_ca_file: Path = Field(
        Path("/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"), description="who signs for the API server"
    )
    kubernetes_namespace: str | None = Field(
        None, description="namespace of the Service that access is reviewed for; unset: this pod's, else default"
    )
    kubernetes_service: str = Field(
        "data-storage-service", description="name of the Service that access is reviewed for"
    )
    kubernetes_audiences: str = Field(
        "", description="audiences that tokens have to be meant for, with commas; empty: the API server's own"
    )
    read_rate: str | None = Field(
        None, description="most reads of one caller, such as 600/minute; unset: no limit. Writing is never limited"
    )
    audit_reads: bool = Field(
        default=False, description="write an event for each export and proof, and for what the auditor role reads"
    )

    tls_dir: Path | None = Field(
        None, description="directory of tls.crt and tls.key, by which the API is served; a changed pair is taken up"
    )
    tls_min_version: Literal["1.2", "1.3"] = Field("1.2", description="oldest version of TLS that is spoken")
    trusted_proxies: str = Field(
        "", description="addresses or networks, with commas, whose X-Forwarded-For says where a request comes from"
    )
    cors_origins: str = Field("", description="origins, with commas, whose pages may call from a browser; empty: none")
    head_bytes_max: int = Field(
        64 * 1024, ge=8 * 1024, le=MIB, description="largest head of a request: its path, query and headers, bytes"
    )
    query_bytes_max: int = Field(16 * 1024, ge=1024, le=MIB, description="longest path and query of a request, bytes")

    body_bytes_max: int = Field(5 * MIB, ge=MIB, le=50 * MIB, description="largest body of a request, bytes")
    batch_bytes_max: int = Field(50 * MIB, ge=MIB, le=50 * MIB, description="largest body of a batch, bytes")
    batch_events_max: int = Field(10_000, ge=1, le=100_000, description="most events in one batch")
    inbox_events_max: int = Field(
        50_000, ge=1, description="most events waiting to be written; further ones are answered 503"
    )
    inbox_bytes_max: int = Field(
        64 * MIB,
        ge=MIB,
        description="most bytes of payload waiting to be written, and most bytes of batches being taken; beyond it posts are "
        "answered 503, but for a batch that is alone",
    )
    flush_events_max: int = Field(1_000, ge=1, description="most events in one flush, but for a larger batch")
    flush_bytes_max: int = Field(
        8 * MIB, ge=1, description="most bytes of payload in one flush, but for a larger batch"
    )

    event_types_dir: Path | None = Field(
        None, description="directory of JSON Schema files, *.json, each of which registers event types of your own"
    )
    unknown_event_types: Literal["reject", "accept"] = Field(
        "reject",
        description="whether events of a type that is not known are refused, or taken with any object as payload",
    )
    spool: bool = Field(
        default=True, description="keep events on disk while Postgres cannot take them, else answer 503"
    )
    spool_dir: Path | None = Field(
        None,
        description="where events wait on disk while Postgres cannot take them, one directory for each process; unset: "
        "spool-<port> in the user's state directory, or no spool where nothing can be written",
    )
    spool_bytes_max: int = Field(
        1024 * MIB, ge=MIB, description="most bytes in the spool; beyond it posts are answered 503"
    )
    away_patience_ms: int = Field(
        1_000, ge=0, description="how long a flush whose connection was lost is tried again before it goes to the spool"
    )
    idempotency_key_days: int = Field(7, ge=1, le=365, description="how long an Idempotency-Key is remembered")

    checkpoint_key_file: Path | None = Field(
        None,
        description="PEM of the Ed25519 key that signs checkpoints of the log; unset: none are signed, but for the embedded Postgres",
    )
    checkpoint_key: SecretStr | None = Field(None, description="the PEM itself, instead of checkpoint_key_file")
    checkpoint_earlier_keys: tuple[str, ...] = Field(
        (), description="public keys (as /tlog/key shows them) that signed before the key was changed; a JSON array"
    )
    hash_key: SecretStr | None = Field(
        None,
        description="HMAC key of rows that the service before this one wrote (hash_algorithm hmac-sha256), to verify them; "
        "DATASTORAGE_HASH_KEY_FILE names a file that holds it",
    )
    signer_cert_dir: Path | None = Field(
        None,
        description="directory of tls.crt and tls.key (RSA) that sign exports of format json; unset: export-certificate in the "
        "user's state directory. A self-signed pair is made where there is none",
    )
    audit_exports: bool = Field(default=False, description="write an event of the service's own for each export")

    retention_url: SecretStr | None = Field(
        None,
        description="Postgres as the role that purges and erases, which is a member of the tables' owner; unset: database_url",
    )
    retention_floor_days: int = Field(
        8,
        ge=1,
        le=2555,
        description="no event is purged younger, unless its category has a floor of its own; a week is how late events may be sent again",
    )
    retention_ceiling_days: int = Field(
        2555, ge=1, description="no event is kept longer, unless its category has a ceiling of its own"
    )
    checkpoint_file: Path | None = Field(
        None,
        description="file out of the database's reach that every checkpoint is appended to, one for each process; at its start it is held against the log",
    )
    checkpoint_url: str | None = Field(None, description="URL that every checkpoint is posted to")
    witnesses: tuple[str, ...] = Field(
        (), description="who cosigns checkpoints (C2SP tlog-witness), each as `vkey URL`; a JSON array"
    )
    heartbeat_interval_s: int = Field(
        3_600, ge=0, description="after so much silence, seconds, the log says that the service lives; 0: never"
    )
    tlog: bool = Field(default=True, description="keep the tiles of the log, sign checkpoints and write heartbeats")
    tlog_public: bool = Field(
        default=True, description="serve /tlog/ (hashes and sizes only) to everybody, else to nobody"
    )

    verifier_events_per_second: int = Field(
        200,
        ge=0,
        le=100_000,
        description="how fast one replica verifies the log in the background, again and again; 0: never",
    )

    pool_connections_max: int = Field(8, ge=1, description="connections to Postgres for reading; writing uses one more")
    statement_timeout_ms: int = Field(30_000, ge=100, description="no statement of the service runs longer")
    lock_timeout_ms: int = Field(
        3_000, ge=100, description="longest wait of a flush for a lock, then it is tried again until its deadline"
    )
    connect_timeout_ms: int = Field(5_000, ge=100, description="longest wait for a connection, then Postgres is away")
    single_deadline_ms: int = Field(
        5_000, ge=100, description="longest wait of a single POST before it is answered 503"
    )
    batch_deadline_ms: int = Field(30_000, ge=100, description="longest wait of a batch before it is answered 503")
    query_deadline_ms: int = Field(10_000, ge=100, description="longest time of a query")
    propagation_delay_ms: int = Field(
        0,
        ge=0,
        le=30_000,
        description="time between not-ready and the end of taking requests at shutdown; 5000 behind a Kubernetes Service",
    )
    shutdown_timeout_ms: int = Field(30_000, ge=1_000, le=120_000, description="longest wait for requests at shutdown")

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="least severe log record written"
    )
    otel_endpoint: str | None = Field(
        None,
        description="OTLP/HTTP collector that spans are sent to, such as http://collector:4318; needs the extra otel",
    )
    profile: bool = Field(
        default=False, description="serve /debug/profile on the health port: where the time goes, for operators"
    )
    access_log: bool = Field(default=True, description="write one record for each request")

    @property
    def auth_modes(self) -> frozenset[str]:
        return frozenset(listed(self.auth))

    @property
    def hmac_key(self) -> bytes | None:
        return None if self.hash_key is None else self.hash_key.get_secret_value().encode()

    @model_validator(mode="after")
    def _modes(self) -> Self:
        modes = self.auth_modes
        if not modes or modes - {"kubernetes", "oidc", "tokens", "none"} or ("none" in modes and len(modes) > 1):
            raise ValueError("auth: expected kubernetes, oidc, tokens, several of them with commas between, or none")
        needed = {"oidc": ("oidc_issuer", "oidc_audience"), "tokens": ("tokens_file",)}
        for name in (name for mode in modes for name in needed.get(mode, ()) if getattr(self, name) is None):
            raise ValueError(f"auth is {self.auth}, which needs DATASTORAGE_{name.upper()}")
        return self

    @model_validator(mode="after")
    def _profile_apart(self) -> Self:
        if self.profile and self.health_port in {None, self.port}:
            raise ValueError(
                "profile: set DATASTORAGE_HEALTH_PORT too; everybody who reaches the API's port could ask for it"
            )
        return self

    def refuse_open_port(self) -> None:
        """Fatal unless the port is closed to strangers, or it was said that it need not be. Only whoever serves has to ask."""
        if self.auth == "none" and not (self.allow_unauthenticated or is_loopback(self.host)):
            raise Fatal(
                f"Host {self.host} is reachable from outside and nobody is asked who they are: set DATASTORAGE_AUTH, bind to "
                "127.0.0.1, or set DATASTORAGE_ALLOW_UNAUTHENTICATED=true if everybody who reaches the port may read and write."
            )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        del file_secret_settings
        return init_settings, env_settings, dotenv_settings, SecretFiles(settings_cls), ConfigFile(settings_cls)


def load(**overrides: Any) -> Settings:
    """The settings, or Fatal with every bad one named."""
    try:
        return Settings(**overrides)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in error.errors()]
        raise Fatal("Invalid configuration:\n" + "\n".join(lines)) from None


def listed(text: str) -> tuple[str, ...]:
    """What stands between the commas of a setting."""
    return tuple(part for one in text.split(",") if (part := one.strip()))


def is_loopback(host: str) -> bool:
    """Whether `host` cannot be reached from another machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# Keys of the reference's YAML file (contract section 22) that mean something here. The others are accepted without effect.
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
_VARIABLES = {"PORT": "port", "HEALTH_PORT": "health_port", "POD_NAMESPACE": "kubernetes_namespace"}
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
"""What the reference does where its file says nothing, and ours does not."""
_GO_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000}


class SecretFiles(PydanticBaseSettingsSource):
    """Secrets from files: DATASTORAGE_DATABASE_URL_FILE names the file that holds DATASTORAGE_DATABASE_URL."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError  # as in ConfigFile

    def __call__(self) -> dict[str, Any]:
        found = {}
        for name, field in self.settings_cls.model_fields.items():
            path = os.environ.get(f"DATASTORAGE_{name.upper()}_FILE")
            if path and field.annotation in {SecretStr, SecretStr | None}:
                try:
                    found[name] = Path(path).read_text("utf-8").strip()
                except (OSError, UnicodeDecodeError) as error:
                    raise Fatal(
                        f"Failed to load secrets: cannot read DATASTORAGE_{name.upper()}_FILE: {error}"
                    ) from None
        return found


class ConfigFile(PydanticBaseSettingsSource):
    """The YAML file of CONFIG_PATH, and the few variables with names of their own, which override it."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError  # the whole file is read at once, in __call__

    def __call__(self) -> dict[str, Any]:
        path = os.environ.get("CONFIG_PATH")
        found = dict(_from_yaml(Path(path))) if path else {}
        for variable, field in _VARIABLES.items():
            if os.environ.get(variable):
                found[field] = os.environ[variable]
        return found


def _from_yaml(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        document = yaml.safe_load(path.read_text("utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise Fatal(f"Failed to load configuration file {path}: {error}") from None
    if not isinstance(document, dict) or set(document) - CONFIG_SECTIONS:
        raise Fatal(
            f"Invalid configuration: {path} may hold only {', '.join(sorted(CONFIG_SECTIONS))} at its top level"
        )
    yield from _CONFIG_DEFAULTS.items()
    for key, field in CONFIG_KEYS.items():
        section, _, name = key.partition(".")
        value = _section(document, section).get(name)
        if value is not None:
            yield field, _in_our_units(field, value)
    yield from _of_server(_section(document, "server"))
    if document.get("tlsProfile") == "Modern":
        yield "tls_min_version", "1.3"
    audit, database = _section(document, "audit"), _section(document, "database")
    if secrets := audit.get("hashKeySecretsFile"):
        yield "hash_key", _secret(secrets, audit.get("hashKeyKey", "hashKey"), path)
    if database:
        yield "database_url", _database_url(database, path)
    if document.get("environment") == "production":
        _refuse_unsafe(_section(document, "server"), database)


def _refuse_unsafe(server: dict[str, Any], database: dict[str, Any]) -> None:
    if database.get("sslMode") == "disable":
        raise Fatal("Invalid configuration: environment production needs a database.sslMode that is not disable")
    if "*" in (server.get("corsAllowedOrigins") or ()):
        raise Fatal("Invalid configuration: environment production allows no * in server.corsAllowedOrigins")


def _of_server(server: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    if origins := server.get("corsAllowedOrigins"):
        if not (isinstance(origins, list) and all(isinstance(one, str) for one in origins)):
            raise Fatal("Invalid configuration: server.corsAllowedOrigins has to be a list of strings")
        yield "cors_origins", ",".join(origins)
    directory = _section(server, "tls").get("certDir")
    if directory and all((Path(directory) / name).exists() for name in TLS_PAIR):
        yield "tls_dir", directory  # the reference serves without TLS when there is no pair
    limit = _section(server, "rateLimit")
    if limit.get("enabled"):
        rate, burst = _number(limit, "requestsPerSecond", 50), _number(limit, "burst", 100)
        # The reference fills a bucket. No window of ten seconds in which it refuses nothing is over this.
        yield "read_rate", f"{burst + 10 * rate:.0f}/10 second"


def _section(document: dict[str, Any], name: str) -> dict[str, Any]:
    found = document.get(name) or {}
    if not isinstance(found, dict):
        raise Fatal(f"Invalid configuration: {name} has to be a mapping, not a {type(found).__name__}")
    return found


def _number(section: dict[str, Any], name: str, default: float) -> float:
    found = section.get(name, default)
    if not isinstance(found, int | float) or found <= 0:
        raise Fatal(f"Invalid configuration: {name} has to be a number above 0, not {found!r}")
    return found


def _in_our_units(field: str, value: Any) -> Any:
    """Go durations become milliseconds; what the reference clamps is clamped; a batch limit of 0 means the default."""
    if field.endswith("_ms") and isinstance(value, str):
        parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", value)
        if not parts or "".join(n + u for n, u in parts) != value:
            raise Fatal(f"Invalid configuration: {value!r} is no duration such as 30s or 1m30s")
        value = int(sum(float(number) * _GO_UNITS_MS[unit] for number, unit in parts))
    if field in _CLAMPED and isinstance(value, int):
        least, most = _CLAMPED[field]
        return min(max(value, least), most)
    if field == "batch_events_max" and value == 0:
        return Settings.model_fields[field].default
    if field == "port" and isinstance(value, int) and value < _PORT_MIN:
        raise Fatal(f"Invalid configuration: server.port has to be {_PORT_MIN} to 65535, not {value}")
    if field == "log_level":
        level = str(value).upper()
        return _LEVELS.get(level, level)
    return value


def _secret(secrets: str, key: str, path: Path, default: str | None = None) -> str:
    """One value of a secrets file, which is a small YAML map."""
    try:
        known = yaml.safe_load(Path(secrets).read_text("utf-8")) or {}
        return str(known[key] if default is None else known.get(key, default))
    except OSError as error:
        raise Fatal(f"Failed to load secrets of {path} from {secrets}: {error}") from None
    except (ValueError, yaml.YAMLError, LookupError, TypeError, AttributeError):  # whose texts may show the secrets
        raise Fatal(f"Failed to load secrets of {path} from {secrets}: expected a YAML map with {key}") from None


def _database_url(database: dict[str, Any], path: Path) -> str:
    user, password = str(database.get("user", "postgres")), ""
    if secrets := database.get("secretsFile"):
        user = _secret(secrets, database.get("usernameKey", "username"), path, user)
        password = _secret(secrets, database.get("passwordKey", "password"), path)
    where = f"{database.get('host', 'localhost')}:{database.get('port', 5432)}/{database.get('name', 'datastorage')}"
    return f"postgresql://{quote(user, '')}:{quote(password, '')}@{where}?sslmode={database.get('sslMode', 'prefer')}"

"""Every setting of the service, read once at start: environment, then `.env`, then the YAML file that CONFIG_PATH names."""

import os
import re
from difflib import get_close_matches
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from app.config_file import MIB, VARIABLES, ConfigFile, SecretFiles
from app.errors import Fatal, Usage

PROCESSES_MAX = 8
ENV_FILE = ".env"
CLIENT_VARIABLES = ("DATASTORAGE_URL", "DATASTORAGE_TOKEN", "DATASTORAGE_TOKEN_FILE", "DATASTORAGE_CA_FILE")
"""Variables of commands that ask a service."""
_OF_OTHERS = re.compile(r"DATASTORAGE_(TEST_.*|SERVICE_(HOST|PORT).*|PORT_\d+_.*)")
"""Those of the tests, and those that Kubernetes sets for a Service of this name."""
Port = Annotated[int, Field(ge=1, le=65535)]


class Settings(BaseSettings):
    """Every setting. Its environment variable is DATASTORAGE_ and its name in upper case."""

    model_config = SettingsConfigDict(
        env_prefix="DATASTORAGE_", env_file=ENV_FILE, frozen=True, extra="forbid", dotenv_filtering="match_prefix"
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
    read_database_url: SecretStr | None = Field(
        None,
        description="standbys that answer reads of those who send a bookmark, one URL or several with spaces between them; unset: the "
        "primary answers all. DATASTORAGE_READ_DATABASE_URL_FILE names a file that holds it",
    )
    read_lag_max_ms: int = Field(
        10_000,
        ge=1_000,
        le=600_000,
        description="a standby that has not what the primary had so long ago answers no reads until it has",
    )
    read_wait_ms: int = Field(
        100,
        ge=0,
        le=5_000,
        description="longest wait of a read for its standby to have what its caller knows; then the primary answers",
    )
    require_synchronous_standby: bool = Field(
        default=False,
        description="acknowledge nothing as committed, and sign nothing, that the synchronous standbys of Postgres do not have on disk; "
        "needs pg_read_all_stats",
    )

    host: str = Field(
        "127.0.0.1",
        description="addresses or names, with commas, that the ports are bound to; 0.0.0.0,:: is everything, IPv4 and IPv6",
    )
    port: Port = Field(8080, description="port of the API")
    health_port: Port | None = Field(None, description="further port for /healthz and /readyz")
    metrics_port: Port | None = Field(None, description="further port for /metrics")
    allow_unauthenticated: bool = Field(
        default=False, description="bind beyond loopback although everybody who reaches the port may read and write"
    )

    processes: int | None = Field(
        None,
        ge=1,
        le=PROCESSES_MAX,
        description="processes of the service: one that writes, and from two on others that read and take requests; unset: "
        "one for each core that the machine or the control group grants, at most 8",
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
    oidc_roles: dict[str, Literal["reader", "writer", "auditor", "importer", "admin"]] = Field(
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

    ui_session_key: SecretStr | None = Field(
        None,
        min_length=32,
        description="at least 32 random characters that seal the sessions of browsers, the same for all replicas; unset: each pod makes "
        "its own at its start, and knows no session of another one. DATASTORAGE_UI_SESSION_KEY_FILE names a file that holds it",
    )
    ui_url: str | None = Field(
        None,
        pattern="^https?://[^/]+$",
        description="where browsers reach this service, without a path: the issuer sends them back there. For ui_oidc_client_id",
    )
    ui_oidc_client_id: str | None = Field(
        None,
        description="as what browsers sign in at oidc_issuer (authorization code with PKCE); unset: they paste a token",
    )
    ui_oidc_client_secret: SecretStr | None = Field(
        None,
        description="secret of that client, if it has one; DATASTORAGE_UI_OIDC_CLIENT_SECRET_FILE names a file that holds it",
    )
    ui_oidc_scopes: str = Field("openid", description="scopes that browsers ask oidc_issuer for, with spaces")
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
        description="most bytes of payload waiting to be written, and most bytes of all bodies from their first byte to their answer; "
        "beyond it requests are answered 503, but for a large body that is alone; an eighth is for bodies of at most 64 KiB",
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
    kubernetes_audit_depth_max: int = Field(
        20, ge=4, le=100, description="levels of an audit event of Kubernetes that are stored; what is deeper is cut"
    )
    kubernetes_audit_bytes_max: int = Field(
        64 * 1024,
        ge=32 * 1024,
        le=256 * 1024,
        description="most bytes of an audit event of Kubernetes; the largest members of a larger one are cut",
    )
    kubernetes_audit_bodies_cut: str = Field(
        "secrets,configmaps,serviceaccounts/token,tokenreviews.authentication.k8s.io",
        description="resources, with commas, whose objects are cut out of audit events of Kubernetes, as kubectl writes them: "
        "deployments.apps, serviceaccounts/token",
    )
    kubernetes_audit_correlation: str | None = Field(
        None,
        description="annotation of audit events of Kubernetes that has their correlation id; without it that is kubernetes: and the auditID",
    )
    kubernetes_audit_cluster_id: str | None = Field(
        None, max_length=255, description="cluster_id of audit events of Kubernetes; unset: they have none"
    )
    kubernetes_audit_retention_days: int = Field(
        365,
        ge=1,
        le=2555,
        description="how long audit events of Kubernetes stay, unless a policy or a hold says otherwise",
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
    checkpoint_mldsa_key_file: Path | None = Field(
        None,
        description="PEM of the ML-DSA-44 key that cosigns checkpoints, against whoever can break Ed25519; unset: Ed25519 alone signs, "
        "but for the embedded Postgres",
    )
    checkpoint_mldsa_key: SecretStr | None = Field(
        None, description="the PEM itself, instead of checkpoint_mldsa_key_file"
    )
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
    retention_awaits_sinks: bool = Field(
        default=True,
        description="purge no event that a sink has yet to be sent, not even one whose sink is paused or forgotten; false: purge it",
    )
    archive_url: str | None = Field(
        None,
        pattern=r"^(file:///[^?#%]*[^/?#%]|s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9=_.-]+)*)$",
        description="where the archive's files are (docs/archive.md), file:///directory or s3://bucket/prefix; needs the extra archive",
    )
    archive_after_days: int = Field(
        90, ge=1, le=2555, description="events are archived when they are older; whole months by default"
    )
    archive_s3_endpoint: str | None = Field(None, description="URL of a store that is not Amazon's")
    archive_s3_region: str = Field("us-east-1", pattern=r"^[a-z0-9-]{1,50}$", description="region of the bucket")
    archive_s3_access_key_file: Path | None = Field(
        None,
        description="file of the access key, with archive_s3_secret_key_file; unset: the credentials that the pod or the machine has been given",
    )
    archive_s3_secret_key_file: Path | None = Field(None, description="file of the secret key")
    checkpoint_file: Path | None = Field(
        None,
        description="file out of the database's reach that every checkpoint is appended to, one for each process; at its start it is held against the log",
    )
    checkpoint_url: str | None = Field(None, description="URL that every checkpoint is posted to")
    witnesses: tuple[str, ...] = Field(
        (), description="who cosigns checkpoints (C2SP tlog-witness), each as `vkey URL`; a JSON array"
    )
    tsa_url: str | None = Field(
        None, description="timestamp authority (RFC 3161) that stamps a checkpoint each hour; unset: none does"
    )
    tsa_certificates_file: Path | None = Field(
        None,
        description="PEM of certificates that its tokens are verified with: the authority's, or that of who issues it and those between; "
        "also those of authorities before it, as long as their tokens are stored",
    )
    sinks: Path | None = Field(
        None,
        description="YAML file of sinks, to which events are delivered as they are committed (docs/streams.md); a changed one is taken up",
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
    reads_at_once_max: int | None = Field(
        None,
        ge=1,
        description="most reads at once in one process, of which one caller has all but one at most; further ones wait for a second "
        "and are then answered 503; unset: two for each core, and two fewer than connections for reading",
    )
    streams_max: int = Field(
        1_000,
        ge=1,
        description="most streams (GET /api/v1/audit/stream) at once in one process that reads, of which one caller has half at most; "
        "further ones are answered 503",
    )
    stream_stall_ms: int = Field(
        60_000, ge=1_000, description="how long a stream waits for a client that receives nothing more, before it ends"
    )
    stream_seconds_max: int = Field(
        3_600, ge=1, description="how long a stream lasts, seconds; then its client goes on with another one"
    )
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
    access_log: bool = Field(
        default=True, description="write one record for each request; of probes and scrapes only with log_level DEBUG"
    )

    @property
    def auth_modes(self) -> frozenset[str]:
        return frozenset(comma_separated(self.auth))

    @property
    def hosts(self) -> tuple[str, ...]:
        """The parts of `host`; IPv6 addresses without brackets."""
        return tuple(part.removeprefix("[").removesuffix("]") for part in comma_separated(self.host))

    @property
    def local_url(self) -> str:
        """Where a client on this machine reaches the API."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.hosts[0], self.hosts[0])  # noqa: S104 -- not bound to here
        return f"http{'s' if self.tls_dir else ''}://{host_and_port(host, self.port)}"

    @property
    def read_database_urls(self) -> tuple[str, ...]:
        """The URLs of standbys that answer reads."""
        return () if self.read_database_url is None else tuple(self.read_database_url.get_secret_value().split())

    @property
    def hmac_key(self) -> bytes | None:
        return None if self.hash_key is None else self.hash_key.get_secret_value().encode()

    @field_validator("host")
    @classmethod
    def _host_is_something(cls, host: str) -> str:
        if not comma_separated(host):
            raise ValueError("expected an address, or several with commas between them")
        return host

    @model_validator(mode="after")
    def _auth_is_complete(self) -> Self:
        modes = self.auth_modes
        if not modes or modes - {"kubernetes", "oidc", "tokens", "none"} or ("none" in modes and len(modes) > 1):
            raise ValueError("auth: expected kubernetes, oidc, tokens, several of them with commas between, or none")
        needed = {"oidc": ("oidc_issuer", "oidc_audience"), "tokens": ("tokens_file",)}
        for name in (name for mode in modes for name in needed.get(mode, ()) if getattr(self, name) is None):
            raise ValueError(f"auth is {self.auth}, which needs DATASTORAGE_{name.upper()}")
        if self.ui_oidc_client_id is not None and ("oidc" not in modes or self.ui_url is None):
            raise ValueError("ui_oidc_client_id: needs DATASTORAGE_AUTH with oidc, and DATASTORAGE_UI_URL")
        return self

    @model_validator(mode="after")
    def _profile_has_a_port_of_its_own(self) -> Self:
        if self.profile and self.health_port in {None, self.port}:
            raise ValueError(
                "profile: set DATASTORAGE_HEALTH_PORT too; everybody who reaches the API's port could ask for it"
            )
        return self

    def refuse_open_port(self) -> None:
        """Fatal if anybody can reach the port without authentication, unless that is allowed. Only `serve` calls this."""
        reachable = [host for host in self.hosts if not is_loopback(host)]
        if self.auth == "none" and reachable and not self.allow_unauthenticated:
            raise Fatal(
                f"Host {', '.join(reachable)} is reachable from outside and callers are not authenticated: set DATASTORAGE_AUTH, bind to "
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
    """The settings; Usage names every invalid one."""
    try:
        return Settings(**overrides)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in error.errors()]
        raise Usage(f"Invalid configuration: {'; '.join(faults)}") from None
    except SettingsError as error:  # its cause may contain the value
        raise Usage(f"Invalid configuration: {error}; expected JSON") from None


def origins() -> dict[str, str]:
    """What has set each setting that is set: of several sources the one that counts, as Settings reads them."""
    from_config = ConfigFile(Settings)()
    in_env_file = {name.upper() for name in dotenv_values(ENV_FILE)}
    in_environment = {name.upper() for name in os.environ}
    found = {}
    for name, field in Settings.model_fields.items():
        variable = f"DATASTORAGE_{name.upper()}"
        if variable in in_environment:
            found[name] = "environment"
        elif variable in in_env_file:
            found[name] = ENV_FILE
        elif _is_secret(field) and os.environ.get(f"{variable}_FILE"):
            found[name] = f"{variable}_FILE"
        elif name in from_config:
            plain = [one for one, of in VARIABLES.items() if of == name and os.environ.get(one)]
            found[name] = plain[0] if plain else f"CONFIG_PATH ({os.environ['CONFIG_PATH']})"
    return found


def _is_secret(field: FieldInfo) -> bool:
    return field.annotation in {SecretStr, SecretStr | None}


def unknown_variables() -> list[str]:
    """A sentence about each variable DATASTORAGE_… of the environment that no setting reads, with the nearest name."""
    fields = Settings.model_fields.items()
    secrets = [name for name, field in fields if _is_secret(field)]
    known = [*(f"DATASTORAGE_{name.upper()}" for name, _ in fields), *CLIENT_VARIABLES]
    known += [f"DATASTORAGE_{name.upper()}_FILE" for name in secrets]
    unknown = sorted(
        name
        for name in os.environ
        if name.upper().startswith("DATASTORAGE_") and name.upper() not in known and not _OF_OTHERS.fullmatch(name)
    )
    return [_about_unknown(name, get_close_matches(name.upper(), known, n=1)) for name in unknown]


def _about_unknown(name: str, nearest: list[str]) -> str:
    return f"{name} is no setting and has no effect" + "".join(f": did you mean {one}?" for one in nearest)


def comma_separated(text: str) -> tuple[str, ...]:
    """The parts of a setting between its commas; empty ones are left out."""
    return tuple(part for one in text.split(",") if (part := one.strip()))


def host_and_port(host: str, port: int) -> str:
    """As in a URL: 127.0.0.1:8080, [::1]:8080."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether `host` cannot be reached from another machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

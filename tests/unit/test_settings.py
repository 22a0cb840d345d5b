"""The reference's configuration file, read by CONFIG_PATH, and what may not be configured."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from app.config_file import MIB
from app.errors import Fatal
from app.settings import Settings, load

_REFERENCE: dict[str, Any] = {
    "environment": "development",
    "server": {
        "port": 8081,
        "host": "127.0.0.1",
        "metricsPort": 9091,
        "maxBatchSize": 0,
        "maxBodySize": 100 * MIB,
        "readTimeout": "30s",
        "shutdownTimeout": "1m30s",
        "endpointPropagationDelay": "0s",
        "corsAllowedOrigins": ["https://a.example", "https://b.example"],
        "rateLimit": {"enabled": True, "requestsPerSecond": 20, "burst": 30},
    },
    "logging": {"level": "warn"},
    "database": {
        "host": "db",
        "port": 5433,
        "name": "action_history",
        "user": "nobody",
        "sslMode": "disable",
        "maxOpenConns": 5,
        "statementTimeout": "2m",
        "usernameKey": "username",
        "passwordKey": "password",
    },
    "redis": {"addr": "redis:6379"},
    "retention": {"interval": "24h"},
    "tlsProfile": "Modern",
    "telemetry": {"endpoint": "collector:4317"},
}


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that CONFIG_PATH names, of the reference's keys, with the secrets file that it names."""
    monkeypatch.chdir(tmp_path)
    secrets = tmp_path / "secrets.yaml"
    secrets.write_text("username: kubernaut\npassword: p@ss/word\nhmac: kkkk\n")
    path = tmp_path / "config.yaml"
    database = _REFERENCE["database"] | {"secretsFile": str(secrets)}
    audit = {"hashKeySecretsFile": str(secrets), "hashKeyKey": "hmac"}
    path.write_text(yaml.safe_dump(_REFERENCE | {"database": database, "audit": audit}))
    monkeypatch.setenv("CONFIG_PATH", str(path))
    return path


@pytest.mark.usefixtures("configured")
def test_the_reference_s_file_means_the_same_here() -> None:
    """A key of the reference's file is lost, or its unit."""
    settings = load()
    assert settings.database_url is not None
    assert (
        settings.database_url.get_secret_value()
        == "postgresql://kubernaut:p%40ss%2Fword@db:5433/action_history?sslmode=disable"
    )
    assert settings.hash_key is not None
    assert settings.hash_key.get_secret_value() == "kkkk"
    assert settings.model_dump(exclude_unset=True, exclude={"database_url", "hash_key"}) == {
        "port": 8081,
        "host": "127.0.0.1",
        "metrics_port": 9091,
        "health_port": 8081,
        "batch_events_max": Settings.model_fields["batch_events_max"].default,
        "body_bytes_max": 50 * MIB,
        "shutdown_timeout_ms": 90_000,
        "propagation_delay_ms": 1_000,
        "cors_origins": "https://a.example,https://b.example",
        "read_rate": "230/10 second",
        "log_level": "WARNING",
        "pool_connections_max": 5,
        "statement_timeout_ms": 120_000,
        "tls_min_version": "1.3",
    }


@pytest.mark.usefixtures("configured")
def test_the_environment_stands_above_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file wins against a variable, or PORT of the reference is forgotten."""
    monkeypatch.setenv("PORT", "9000")
    monkeypatch.setenv("DATASTORAGE_READ_RATE", "7/minute")
    settings = load()
    assert (settings.port, settings.read_rate) == (9000, "7/minute")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"server": {"shutdownTimeout": "soon"}}, "'soon' is not a duration such as 30s or 1m30s"),
        ({"server": {"port": 80}}, "server.port has to be 1024 to 65535, not 80"),
        ({"server": {"healthPort": 0}}, "health_port: Input should be greater than or equal to 1"),
        ({"server": [1]}, "server has to be a mapping"),
        ({"server": {"tls": "on"}}, "tls has to be a mapping"),
        ({"server": {"corsAllowedOrigins": "http://a"}}, "has to be a list of strings"),
        ({"server": {"rateLimit": {"enabled": True, "burst": "x"}}}, "burst has to be a number above 0"),
        ({"environment": "production", "database": {"sslMode": "disable"}}, "sslMode that is not disable"),
        ({"environment": "production", "server": {"corsAllowedOrigins": ["*"]}}, "allows no"),
        ({"servers": {}}, "may hold only"),
        ({"database": {"secretsFile": "/nowhere"}}, "Failed to load secrets"),
    ],
)
def test_a_bad_file_is_refused_in_words(configured: Path, change: dict[str, Any], message: str) -> None:
    """The service starts with a file it has half understood, or the error does not name the fault."""
    configured.write_text(yaml.safe_dump(change))
    with pytest.raises(Fatal, match=message):
        load()


def test_secrets_are_not_in_messages(tmp_path: Path, configured: Path) -> None:
    """The error about a secrets file shows its content."""
    (tmp_path / "secrets.yaml").write_text("password: [hunter2\n")
    with pytest.raises(Fatal, match="expected a YAML map with hmac") as refused:
        load()
    assert "hunter2" not in refused.value.detail
    configured.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(Fatal, match="Failed to load configuration file"):
        load()


def test_a_file_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference's message for a missing file is another."""
    monkeypatch.setenv("CONFIG_PATH", "/nowhere.yaml")
    with pytest.raises(Fatal, match=r"Failed to load configuration file /nowhere\.yaml"):
        load()

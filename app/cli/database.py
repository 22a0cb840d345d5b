"""The settings of a command that works on a database: the one that is set, else that of a running service's embedded Postgres."""

from pathlib import Path

from pydantic import SecretStr

from app import database_url, embedded
from app.errors import Fatal
from app.settings import Settings, load
from app.state_dir import state_dir
from app.tlog import keys, note


def settings_with_database() -> Settings:
    """The settings; without a database of its own, with that of a running service's embedded Postgres and its key."""
    settings = load()
    if settings.database_url is not None:
        return settings
    return _on_running_server(settings, "DATASTORAGE_DATABASE_URL")


def settings_for_removal() -> Settings:
    """As settings_with_database(), for what purges, erases and orders: DATASTORAGE_RETENTION_URL is enough."""
    settings = load()
    if settings.database_url is not None or settings.retention_url is not None:
        return settings
    return _on_running_server(
        settings, "DATASTORAGE_RETENTION_URL, or DATASTORAGE_DATABASE_URL if one role does everything"
    )


def on_embedded(settings: Settings, url: str) -> Settings:
    """The settings on the embedded Postgres at `url`. Libpq's variables do not count for it."""
    database_url.ignore_variables()
    return settings.model_copy(update={"database_url": SecretStr(url)} | _embedded_checkpoint_key(settings))


def _on_running_server(settings: Settings, variables: str) -> Settings:
    url = embedded.running_url(settings.data_dir)
    if url is None:
        raise Fatal(f"There is no database: set {variables}, or start the embedded one with `datastorage serve`.")
    return on_embedded(settings, url)


def _embedded_checkpoint_key(settings: Settings) -> dict[str, Path]:
    """The settings for the keys that are generated beside the embedded Postgres at its first start; empty if another key is set."""
    configured = settings.checkpoint_key is not None or settings.checkpoint_key_file is not None
    if configured or not note.is_key_name(settings.log_name or "drawn"):
        return {}
    directory = state_dir(settings.data_dir)
    created = {"checkpoint_key_file": directory / "checkpoint.pem"}
    keys.create_key_file(created["checkpoint_key_file"])
    is_name_short = len((settings.log_name or "").encode()) <= note.COSIGNER_NAME_BYTES_MAX
    if is_name_short and settings.checkpoint_mldsa_key is None and settings.checkpoint_mldsa_key_file is None:
        created["checkpoint_mldsa_key_file"] = directory / "checkpoint-ml-dsa.pem"
        keys.create_key_file(created["checkpoint_mldsa_key_file"], "ml-dsa-44")
    return created

"""Public keys from a text or a file, as the commands that verify something take them with --key; and the settings of private ones."""

import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.errors import Fatal
from app.settings import Settings
from app.tlog.keys import create_key_file, read_public_keys, signing_key
from app.tlog.note import ML_DSA_44, PublicKey
from tests.services import ROOT

KEYS = [PublicKey("log.example", Ed25519PrivateKey.generate().public_key().public_bytes_raw()) for _ in range(3)]


def write(directory: Path, content: bytes) -> str:
    (directory / "key").write_bytes(content)
    return str(directory / "key")


def test_a_text_or_a_file(tmp_path: Path) -> None:
    """A key is taken in one form only, or of the keys that a log had only the first one counts."""
    assert read_public_keys(str(KEYS[0])) == KEYS[:1]
    assert read_public_keys(f" {KEYS[0]}\n") == KEYS[:1]
    text = "".join(f"{key}\n" for key in KEYS)
    assert read_public_keys(text) == KEYS  # longer than a file's name can be
    assert read_public_keys(write(tmp_path, text.encode())) == KEYS
    assert read_public_keys(write(tmp_path, text.replace("\n", "\r\n\n").encode())) == KEYS


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe\x00key", b"", b" \n", b"nonsense", pytest.param(f"{KEYS[0]}\nnonsense\n".encode(), id="more")],
)
def test_what_is_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    """A file that cannot be read ends in a traceback, or one without a key in a verification without a key."""
    with pytest.raises(Fatal):
        read_public_keys(write(tmp_path, content))


@pytest.mark.parametrize(
    "text", ["", "nonsense", "/nowhere/log.key", pytest.param(f"{KEYS[0]} nonsense", id="more"), "x" * 5000, "a\0b"]
)
def test_a_text_that_is_no_key_is_refused(text: str) -> None:
    """A typing error in a key or in the name of its file passes."""
    with pytest.raises(Fatal):
        read_public_keys(text)


@pytest.mark.parametrize("command", ["verify-proof", "verify-export"])
def test_one_line_says_what_is_wrong(tmp_path: Path, command: str) -> None:
    """Somebody who names the wrong file as key gets a traceback."""
    key = write(tmp_path, b"\xff\xfe\x00key")
    (tmp_path / "file").write_text("c2sp.org/tlog-proof@v1\n")
    done = subprocess.run(
        [sys.executable, "-m", "app", command, str(tmp_path / "file"), "--key", key],
        env={"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
    assert f"Cannot read the key in {key}" in done.stderr


def settings(**values: object) -> Settings:
    return Settings.model_validate(values)


def test_two_keys_sign(tmp_path: Path) -> None:
    """A key that the service makes cannot be read by it, or is one that others can read."""
    for name, algorithm in (("one.pem", "ed25519"), ("two.pem", "ml-dsa-44")):
        create_key_file(tmp_path / name, algorithm)
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    files = {"checkpoint_key_file": tmp_path / "one.pem", "checkpoint_mldsa_key_file": tmp_path / "two.pem"}
    key = signing_key(settings(**files), "log.example")
    assert key is not None
    assert key.cosigner is not None
    cosigner = PublicKey("log.example", key.cosigner.public_key().public_bytes_raw(), ML_DSA_44)
    assert key.all_public == (key.public, cosigner)
    text = (tmp_path / "two.pem").read_text()
    earlier = (str(cosigner),)
    again = settings(
        checkpoint_key_file=tmp_path / "one.pem", checkpoint_mldsa_key=text, checkpoint_earlier_keys=earlier
    )
    same = signing_key(again, "log.example")
    assert same is not None
    assert same.all_public == (key.public, cosigner, cosigner)
    with pytest.raises(Fatal, match="more than 255 bytes"):
        signing_key(settings(**files), "x" * 256)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"checkpoint_mldsa_key_file": "ml-dsa-44"}, "no Ed25519 key"),
        ({"checkpoint_key_file": "ml-dsa-44"}, "_CHECKPOINT_KEY_FILE is not an ed25519 key"),
        (
            {"checkpoint_key_file": "ed25519", "checkpoint_mldsa_key_file": "ed25519"},
            "_CHECKPOINT_MLDSA_KEY_FILE is not an ml-dsa-44 key; make one with `datastorage checkpoint-key",
        ),
        ({"checkpoint_mldsa_key_file": "missing"}, "Cannot read DATASTORAGE_CHECKPOINT_MLDSA_KEY_FILE"),
    ],
)
def test_a_key_of_the_wrong_kind_is_refused(tmp_path: Path, values: dict[str, str], message: str) -> None:
    """The two keys are mixed up, and the service signs with one of them or not at all without saying so."""
    for algorithm in ("ed25519", "ml-dsa-44"):
        create_key_file(tmp_path / algorithm, algorithm)
    with pytest.raises(Fatal, match=message):
        signing_key(settings(**{name: tmp_path / value for name, value in values.items()}), "log.example")

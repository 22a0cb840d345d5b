"""A real rsyslog that receives over TLS, as docs/streams.md configures it."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.certificates import Authority
from tests.services import free_port

PROGRAM = shutil.which("rsyslogd", path="/usr/sbin:/usr/bin")
_PAGE = Path(__file__).parents[2] / "docs" / "streams-syslog.md"
_ADDED = """
template(name="parts" type="string"
         string="%pri% %timereported:::date-rfc3339% %hostname% %app-name% %msgid% %structured-data%\\n")
"""
_PARTS = '  action(type="omfile" file="{directory}/parts" template="parts")\n'


def _config(directory: Path, port: int, driver: str, client: str | None) -> str:
    """The configuration of the page, with a file of parsed headers beside the messages."""
    config = _PAGE.read_text("utf-8").partition("```\n")[2].partition("```")[0]
    mode = f'"x509/name" permittedPeer=["{client}"]' if client else '"anon"'
    for documented, used in {
        'streamDriver.authMode="anon"': f"streamDriver.authMode={mode}",
        'streamDriver.name="gtls"': f'streamDriver.name="{driver}"',
        "/etc/rsyslog-tls": str(directory),
        "/var/log/datastorage.ndjson": str(directory / "messages"),
        'port="6514"': f'address="127.0.0.1" port="{port}"',
        "ruleset(name=": _ADDED + "ruleset(name=",
        "\n}": "\n" + _PARTS.format(directory=directory) + "}",
    }.items():
        assert documented in config, documented
        config = config.replace(documented, used)
    return f'{config}\naction(type="omfile" file="{directory}/own")\n'


class Rsyslog:
    """Receives at localhost:port. What it has received stands in `messages`, one in each line."""

    def __init__(self, directory: Path, authority: Authority, port: int, driver: str, client: str | None) -> None:
        self.directory, self.port = directory, port
        (directory / "ca.crt").write_bytes(authority.path.read_bytes())
        (directory / "rsyslog.conf").write_text(_config(directory, port, driver, client))
        self.start()

    def start(self) -> None:
        assert PROGRAM is not None
        arguments = ["-n", "-f", str(self.directory / "rsyslog.conf"), "-i", str(self.directory / "pid")]
        with (self.directory / "output").open("ab") as output:
            self.process = subprocess.Popen([PROGRAM, *arguments], stdout=output, stderr=output)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(20)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)

    def lines(self, name: str = "messages") -> list[bytes]:
        path = self.directory / name
        return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


@contextmanager
def rsyslog(
    directory: Path, authority: Authority, driver: str = "gtls", client: str | None = None
) -> Iterator[Rsyslog]:
    """`client` is the common name that its clients' certificates have to have, if they have to have any."""
    directory.mkdir()
    authority.write_pair(directory, "localhost")
    receiver = Rsyslog(directory, authority, free_port(), driver, client)
    try:
        yield receiver
    finally:
        receiver.stop()

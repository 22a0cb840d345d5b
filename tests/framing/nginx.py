"""A real nginx in front of a service, as users configure it."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.services import free_port

PROGRAM = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin")
_CONFIG = """
daemon off;
master_process off;
pid {directory}/pid;
error_log {directory}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  scgi_temp_path {directory}/scgi;
  uwsgi_temp_path {directory}/uwsgi;
  map $http_upgrade $connection_upgrade {{
    default upgrade;
    ''      {without_offer};
  }}
  upstream service {{ server 127.0.0.1:{service_port}; keepalive 4; }}
  server {{
    listen 127.0.0.1:{port};
    server_name events.example;
    location = {forbidden} {{ return 403; }}
    location / {{
      proxy_pass http://service;
      proxy_http_version 1.1;
      proxy_request_buffering {buffering};
      proxy_set_header Host $host;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_upgrade;
    }}
  }}
}}
"""


@contextmanager
def nginx(directory: Path, service_port: int, forbidden: str, *, keeps_connections: bool) -> Iterator[int]:
    """The port of an nginx that passes everything to the service except `forbidden`.

    `keeps_connections`: it sends the requests of all clients over few connections, and bodies as they arrive.
    """
    assert PROGRAM is not None
    directory.mkdir()
    port = free_port()
    config = directory / "nginx.conf"
    without_offer, buffering = ("''", "off") if keeps_connections else ("close", "on")
    config.write_text(
        _CONFIG.format(
            directory=directory,
            port=port,
            service_port=service_port,
            forbidden=forbidden,
            without_offer=without_offer,
            buffering=buffering,
        )
    )
    with (directory / "output").open("wb") as output:
        process = subprocess.Popen(
            [PROGRAM, "-e", str(directory / "error.log"), "-c", str(config)], stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + 20
        while not (directory / "pid").exists():
            assert process.poll() is None, (directory / "error.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield port
    finally:
        process.terminate()
        process.wait(20)

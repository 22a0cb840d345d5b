"""A small receiver of OTLP/HTTP logs that says what it is told to say."""

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord


@dataclass
class Reply:
    """What is answered to one request. Without a status the connection is closed after the request was read."""

    status: int | None = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    stores: bool | None = None
    """Whether the records are stored; None: if the status is 200."""
    hangs: bool = False


@dataclass
class Collector:
    """What has been received."""

    replies: list[Reply] = field(default_factory=list)
    """To the next requests; to all others 200."""
    records: list[LogRecord] = field(default_factory=list)
    requests: list[ExportLogsServiceRequest] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    stopped: Event = field(default_factory=Event)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/logs"


def rejecting(count: int, message: str) -> bytes:
    """The body of an answer that says so."""
    answer = ExportLogsServiceResponse()
    answer.partial_success.rejected_log_records = count
    answer.partial_success.error_message = message
    return bytes(answer.SerializeToString())


@contextmanager
def collector(*replies: Reply) -> Iterator[Collector]:
    receiver = Collector(list(replies))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            request = ExportLogsServiceRequest.FromString(gzip.decompress(body))
            reply = receiver.replies.pop(0) if receiver.replies else Reply()
            receiver.requests.append(request)
            receiver.headers.append({name.lower(): value for name, value in self.headers.items()})
            if reply.stores or (reply.stores is None and reply.status == 200):
                for resource in request.resource_logs:
                    for scope in resource.scope_logs:
                        receiver.records.extend(scope.log_records)
            if reply.hangs:
                receiver.stopped.wait(60)
            if reply.status is None or reply.hangs:
                self.close_connection = True
                return
            self.send_response(reply.status)
            for name, value in ({"content-length": str(len(reply.body))} | reply.headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver.port = server.server_address[1]
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield receiver
        finally:
            receiver.stopped.set()
            server.shutdown()
            thread.join()

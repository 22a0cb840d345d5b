"""What OTLP's clients are answered: ExportLogsServiceResponse, and for errors google.rpc.Status, each in the encoding of the request.

A client sends a request again only for 429, 502, 503 and 504, and drops its records for anything else: so whatever may succeed
later is 503 with Retry-After.
"""

import orjson
from starlette.requests import Request
from starlette.responses import Response

from app.api.routes import Answer
from app.errors import AuditError, Unavailable, UnsupportedEncoding

LOGS_PATH = "/v1/logs"
JSON, PROTOBUF = "application/json", "application/x-protobuf"
_GRPC_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 413: 8, 415: 12, 501: 12, 503: 14}
"""By status of HTTP: INVALID_ARGUMENT, UNAUTHENTICATED, PERMISSION_DENIED, NOT_FOUND, RESOURCE_EXHAUSTED, UNIMPLEMENTED, UNAVAILABLE."""
STATUSES = tuple(_GRPC_CODES)
"""With which this route refuses."""
_UNKNOWN = 2


class MediaTypeUnknown(UnsupportedEncoding):
    """The body has a Content-Type that this route does not read."""

    slug = "unsupported-media-type"


class PartialSuccess(Answer):
    """How many log records were not stored, as a decimal string, and why: the first few."""

    rejectedLogRecords: str  # noqa: N815 -- a name of OTLP
    errorMessage: str  # noqa: N815 -- as above


class LogsStored(Answer):
    """ExportLogsServiceResponse: the log records are committed, or safe on disk while Postgres is away, but for those that it counts."""

    partialSuccess: PartialSuccess | None = None  # noqa: N815 -- as above


class Status(Answer):
    """google.rpc.Status: the gRPC code of the error, and what is wrong and what to do."""

    code: int
    message: str


def media_type_of(request: Request) -> str:
    """The media type of the request's body, without parameters and in lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def logs_stored(media_type: str, rejected: int = 0, message: str = "") -> Response:
    """200; with how many records were not stored, and why, if there are any."""
    if media_type == PROTOBUF:
        from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as pb  # noqa: PLC0415 -- an extra

        answer = pb.ExportLogsServiceResponse()
        if rejected:
            answer.partial_success.rejected_log_records = rejected
            answer.partial_success.error_message = message
        return Response(answer.SerializeToString(), 200, media_type=PROTOBUF)
    partial = {"partialSuccess": {"rejectedLogRecords": str(rejected), "errorMessage": message}} if rejected else {}
    return Response(orjson.dumps(partial), 200, media_type=JSON)


def status_of(error: AuditError) -> int:
    """The status that `error` is answered with on this route."""
    if error.status >= 500 and error.status != 501:  # what is not implemented will not be later either
        return Unavailable.status
    return error.status if error.status in _GRPC_CODES else 400


def status_body(request: Request, error: AuditError) -> tuple[bytes, str, dict[str, str]]:
    """The body of an error's answer, its media type, and further headers."""
    status = status_of(error)
    code = _GRPC_CODES.get(status, _UNKNOWN)
    headers = {"Retry-After": str(Unavailable.retry_after_seconds)} if status == Unavailable.status else {}
    if media_type_of(request) == PROTOBUF and (message := _packed(code, error.detail)) is not None:
        return message, PROTOBUF, headers
    return orjson.dumps({"code": code, "message": error.detail}), JSON, headers


def _packed(code: int, message: str) -> bytes | None:
    """A google.rpc.Status; None where the extra is not installed, which is what the message is about then."""
    try:
        from google.rpc.status_pb2 import Status as Packed  # noqa: PLC0415 -- an extra
    except ImportError:
        return None
    return bytes(Packed(code=code, message=message).SerializeToString())

"""The exception tree. Each class is one problem type of the HTTP contract; its docstring's first line is the default detail.

The classes here are those that several stations use; further ones are defined where they are raised.

AuditError
├── BadRequest            400  the request does not fit the API; nothing was written
│   ├── InvalidRequest    400  the body, or a value of its payload, cannot be decoded
│   ├── BatchTooLarge     400  more events than one batch may have
│   └── …                 400  single rules of the API, defined beside their routes
├── AccessRefused              the caller is not admitted
│   ├── Unauthorized      401
│   ├── Forbidden         403
│   └── ReviewFailed      500  the identity provider could not be asked
├── NotFound              404
├── Conflict              409  the id belongs to another event
│   └── KeyBusy           409  the first request with this Idempotency-Key is still running
├── TooLarge              413
├── QueryTooLong          414
├── UnsupportedEncoding   415  a Content-Encoding other than gzip
├── KeyReused             422  the Idempotency-Key was sent before with another body
├── RateLimited           429
├── HeadTooLarge          431
├── Unavailable           503  send the request again after `retry_after_seconds`
│   ├── DatabaseAway      503  Postgres cannot be reached
│   ├── DatabaseBusy      503  Postgres did not answer in time
│   ├── InboxFull         503
│   │   └── BodiesFull    503  the bodies in memory leave no space; the connection is closed
│   └── …                 503  SpoolFull, SpoolFailed, MonthDetached, HoldChanged, LockTimeout, and others where they are raised
├── DatabaseFailed        500  Postgres answered with an error
└── Fatal                   -  the service, or a command, ends with this message
    └── Usage               -  a command was called wrongly

app/ingest/store.py adds what one flush can end in: RowRefused (400, Postgres refuses a value), LostRace, PossibleResend.
"""

from typing import ClassVar

PROBLEMS = "https://kubernaut.ai/problems/"


class AuditError(Exception):
    """Something went wrong; see the service's log."""

    status: ClassVar[int] = 500
    slug: ClassVar[str] = ""
    title: ClassVar[str] = "Internal Server Error"
    label: ClassVar[str] = "AuditError"
    """Value of the metrics' label `reason`: the name of the class, unless the class sets another one."""

    def __init_subclass__(cls) -> None:
        cls.label = vars(cls).get("label", cls.__name__)

    def __init__(self, detail: str | None = None, *, slug: str | None = None, **extra: object) -> None:
        self.detail = detail or (type(self).__doc__ or "").partition("\n")[0]
        self.type = PROBLEMS + name if (name := slug or self.slug) else "about:blank"
        self.extra = extra
        super().__init__(self.detail)


class BadRequest(AuditError):
    """The request does not fit the API."""

    status = 400
    slug = "validation-error"
    title = "Validation Error"


class InvalidRequest(BadRequest):
    """The body is not JSON that this service can store."""

    slug = "invalid_request"
    title = "Invalid Request"


class BatchTooLarge(BadRequest):
    """The batch size is above the limit."""

    slug = "batch-size-exceeded"
    title = "Batch Size Exceeded"


class AccessRefused(AuditError):
    """The caller is not admitted; see the service's log."""


class Unauthorized(AccessRefused):
    """Invalid or expired token"""

    status = 401
    title = "Unauthorized"


class Forbidden(AccessRefused):
    """Insufficient permissions"""

    status = 403
    title = "Forbidden"


class ReviewFailed(AccessRefused):
    """Authentication service unavailable"""


class RateLimited(AuditError):
    """Too many requests from one caller; wait for the seconds in Retry-After."""

    status = 429
    slug = "rate-limit-exceeded"
    title = "Rate Limit Exceeded"

    def __init__(self, detail: str, headers: dict[str, str]) -> None:
        self.headers = headers
        super().__init__(detail)


class HeadTooLarge(AuditError):
    """The request's headers are larger than this service accepts."""

    status = 431
    slug = "request-headers-too-large"
    title = "Request Header Fields Too Large"


class QueryTooLong(AuditError):
    """The request's path and query are longer than this service accepts."""

    status = 414
    slug = "query-too-long"
    title = "URI Too Long"


class NotFound(AuditError):
    """Not found."""

    status = 404
    slug = "not-found"
    title = "Not Found"


class Conflict(AuditError):
    """The id belongs to another event."""

    status = 409
    slug = "conflict"
    title = "Resource Conflict"


class KeyReused(AuditError):
    """This Idempotency-Key was sent before with another body: send the first body again, or a new key."""

    status = 422
    slug = "idempotency-key-reused"
    title = "Idempotency Key Reused"


class KeyBusy(Conflict):
    """A request with this Idempotency-Key is still running: wait for its answer, or send it again shortly."""

    slug = "idempotency-key-in-use"
    title = "Request In Progress"


class TooLarge(AuditError):
    """The body is larger than this route accepts."""

    status = 413
    slug = "request-too-large"
    title = "Request Entity Too Large"


class UnsupportedEncoding(AuditError):
    """The body has a Content-Encoding that this service does not read."""

    status = 415
    slug = "unsupported-content-encoding"
    title = "Unsupported Media Type"


class Unavailable(AuditError):
    """The service cannot accept this now; send it again shortly."""

    status = 503
    slug = "service-unavailable"
    title = "Service Unavailable"
    retry_after_seconds: ClassVar[int] = 1


class DatabaseAway(Unavailable):
    """Postgres cannot be reached; nothing was acknowledged, send the request again shortly."""


class DatabaseBusy(Unavailable):
    """The database did not answer in time: narrow the query by correlation, type or time, or send it again."""


class InboxFull(Unavailable):
    """Too many events are waiting to be written; send the request again shortly."""


class BodiesFull(InboxFull):
    """Too many bodies are in memory; send the request again shortly."""


class DatabaseFailed(AuditError):
    """The database could not answer; see the service's log."""

    slug = "database-error"
    title = "Database Error"


class Fatal(AuditError):
    """The service, or a command, cannot continue; the message says what to change."""


class Usage(Fatal):
    """A command was called wrongly; the message says what it expects."""

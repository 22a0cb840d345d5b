"""The exception tree. Each class is one problem type of the HTTP contract; the docstring is the default detail.

AuditError
├── BadRequest            400  the request is at fault: nothing was written
│   ├── InvalidRequest         … JSON or a payload value that no decoder takes
│   ├── BatchTooLarge          … more events than one batch may hold
│   └── …
├── AccessRefused                    nobody is let in without an answer that says so
│   ├── Unauthorized      401
│   ├── Forbidden         403
│   └── ReviewFailed      500  whoever decides could not be asked
├── NotFound, Conflict    404, 409
│   └── KeyBusy              … the first request with this Idempotency-Key is still running
├── KeyReused             422
├── TooLarge              413
├── Unavailable           503  come back after `retry_after_seconds`
│   ├── DatabaseAway
│   └── InboxFull
├── DatabaseFailed        500
└── Fatal                  -   the service says why and exits
"""

from typing import ClassVar

PROBLEMS = "https://kubernaut.ai/problems/"


class AuditError(Exception):
    """Something went wrong; the service's log says what."""

    status: ClassVar[int] = 500
    slug: ClassVar[str] = ""
    title: ClassVar[str] = "Internal Server Error"

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
    """The body is no JSON that this service can keep."""

    slug = "invalid_request"
    title = "Invalid Request"


class BatchTooLarge(BadRequest):
    """The batch size is above the limit."""

    slug = "batch-size-exceeded"
    title = "Batch Size Exceeded"


class AccessRefused(AuditError):
    """The caller is not let in. The log says why."""


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
    """Too many requests of one caller; wait as long as Retry-After says."""

    status = 429
    slug = "rate-limit-exceeded"
    title = "Rate Limit Exceeded"

    def __init__(self, detail: str, headers: dict[str, str]) -> None:
        self.headers = headers
        super().__init__(detail)


class HeadTooLarge(AuditError):
    """The request's headers are larger than this service takes."""

    status = 431
    slug = "request-headers-too-large"
    title = "Request Header Fields Too Large"


class QueryTooLong(AuditError):
    """The request's path and query are longer than this service takes."""

    status = 414
    slug = "query-too-long"
    title = "URI Too Long"


class NotFound(AuditError):
    """There is no such thing."""

    status = 404
    slug = "not-found"
    title = "Not Found"


class Conflict(AuditError):
    """The id is taken by another event."""

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
    """The body is larger than this route takes."""

    status = 413
    slug = "request-too-large"
    title = "Request Entity Too Large"


class Unavailable(AuditError):
    """The service cannot take this now; send it again shortly."""

    status = 503
    slug = "service-unavailable"
    title = "Service Unavailable"
    retry_after_seconds: ClassVar[int] = 1


class DatabaseAway(Unavailable):
    """Postgres cannot be reached; nothing was acknowledged, send the request again shortly."""


class InboxFull(Unavailable):
    """Too many events are waiting to be written; send the request again shortly."""


class DatabaseFailed(AuditError):
    """The database could not answer; the service's log says why."""

    slug = "database-error"
    title = "Database Error"


class Fatal(AuditError):
    """The service cannot start; the message says what to change."""

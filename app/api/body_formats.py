"""The envelopes in which events may be posted: ADR-034, and CloudEvents in its three modes."""

from typing import Any

from starlette.requests import Request

from app.api.body import JSON, wrong_type
from app.errors import BadRequest
from app.events import cloudevents
from app.events.canonical import Document
from app.events.catalog import Catalog
from app.events.cloudevents import CloudEventReader
from app.events.explain import Faults, bad_fields
from app.ingest.accept import Draft, check_item

SINGLE_PATH = "/api/v1/audit/events"
BATCH_PATH = "/api/v1/audit/events/batch"


class Envelope:
    """How the events of one request are read: as ADR-034 has them, or as `cloud` does."""

    def __init__(self, catalog: Catalog, cloud: CloudEventReader | None = None) -> None:
        self._catalog = catalog
        self._cloud = cloud

    def only(self, document: Document) -> Draft:
        """The draft of a body that is one event."""
        try:
            return self.draft(document.value, "", plain=document.plain, depth=document.depth)
        except BadRequest as error:
            raise self.renamed(error) from None

    def draft(self, value: Any, pointer: str, *, plain: bool, depth: int) -> Draft:
        """The draft of one item. Its faults have the names of ADR-034 until they are `renamed`."""
        if self._cloud is None:
            return check_item(self._catalog, value, pointer, plain=plain, depth=depth)
        item, unfit = self._cloud.item(value, pointer)
        faults = Faults()
        with faults:
            if unfit:
                raise bad_fields(unfit)
        with faults:
            # One level more: in binary mode the body is the payload alone.
            drafted = check_item(self._catalog, item, pointer, plain=plain, depth=depth + 1)
            if not unfit:
                return drafted
        raise faults.error()

    def renamed(self, error: BadRequest) -> BadRequest:
        """`error` with its places named as the client has sent them."""
        return error if self._cloud is None else self._cloud.with_pointers_as_sent(error)


def of_single(request: Request, media_type: str) -> Envelope:
    """The envelope of a single post; BadRequest for a content type that this route does not take."""
    catalog, headers = request.app.state.catalog, request.scope["headers"]
    if media_type == JSON:
        return Envelope(catalog, CloudEventReader(catalog, headers) if cloudevents.is_binary(headers) else None)
    if media_type == cloudevents.STRUCTURED:
        return Envelope(catalog, CloudEventReader(catalog))
    if media_type == cloudevents.BATCH:
        raise BadRequest(f"Content-Type: {media_type} belongs to POST {BATCH_PATH}")
    raise wrong_type(media_type, f"{JSON} or {cloudevents.STRUCTURED}")


def of_batch(request: Request, media_type: str) -> Envelope:
    """The envelope of each item of a batch; BadRequest for a content type that this route does not take."""
    catalog = request.app.state.catalog
    if media_type == cloudevents.BATCH:
        return Envelope(catalog, CloudEventReader(catalog))
    if media_type == cloudevents.STRUCTURED:
        raise BadRequest(f"Content-Type: {media_type} belongs to POST {SINGLE_PATH}")
    if media_type != JSON:
        raise wrong_type(media_type, f"{JSON} or {cloudevents.BATCH}")
    if cloudevents.is_binary(request.scope["headers"]):
        raise BadRequest(f"ce-specversion: a CloudEvent in binary mode belongs to POST {SINGLE_PATH}")
    return Envelope(catalog)

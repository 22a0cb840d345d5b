"""The formats in which events may be posted: ADR-034, also one event a line, and CloudEvents in its three content modes."""

from collections.abc import Iterator
from typing import Any

from starlette.requests import Request

from app.api.body import JSON, wrong_type
from app.api.service import foundation_of
from app.errors import BadRequest
from app.events import canonical, cloudevents
from app.events.canonical import Document
from app.events.catalog import Catalog
from app.events.cloudevents import CloudEventReader
from app.events.explain import Faults, bad_fields, by_line
from app.ingest.accept import Draft, check_item

SINGLE_PATH = "/api/v1/audit/events"
BATCH_PATH = "/api/v1/audit/events/batch"
NDJSON = ("application/x-ndjson", "application/ndjson", "application/jsonl")
"""Names of one format, none of which is registered: newline-delimited JSON."""


class BodyFormat:
    """Reads the events of one request: as ADR-034 defines them, or as `cloud_events` does if it is not None."""

    def __init__(
        self, catalog: Catalog, cloud_events: CloudEventReader | None = None, *, one_a_line: bool = False
    ) -> None:
        self._catalog = catalog
        self._cloud_events = cloud_events
        self.one_a_line = one_a_line

    def parse_single(self, document: Document) -> Draft:
        """The draft of a body that is one event. BadRequest with the names that the client has sent."""
        try:
            return self.parse_item(document.value, "", plain=document.plain, depth=document.depth)
        except BadRequest as error:
            raise self.with_client_names(error) from None

    def parse_item(self, value: Any, pointer: str, *, plain: bool, depth: int) -> Draft:
        """The draft of one item. BadRequest has the names of ADR-034: pass it to `with_client_names`."""
        if self._cloud_events is None:
            return check_item(self._catalog, value, pointer, plain=plain, depth=depth)
        item, bad_attributes = self._cloud_events.item(Document(value, plain, depth), pointer)
        faults = Faults()
        with faults:
            if bad_attributes:
                raise bad_fields(bad_attributes)
        with faults:
            draft = check_item(self._catalog, item.value, pointer, plain=item.plain, depth=item.depth)
            if not bad_attributes:
                return draft
        raise faults.error()

    def items(self, body: bytes) -> Iterator[Document]:
        """The items of a batch, one by one. BadRequest when one is reached that is not JSON."""
        if not self.one_a_line:
            yield from canonical.parse_items(body)
            return
        try:
            yield from canonical.parse_lines(body)
        except BadRequest as error:
            raise by_line(error) from None

    def with_client_names(self, error: BadRequest) -> BadRequest:
        """`error` with the names of members that the client has sent."""
        if self.one_a_line:
            return by_line(error)
        return error if self._cloud_events is None else self._cloud_events.with_pointers_as_sent(error)


def single_format(request: Request, media_type: str) -> BodyFormat:
    """The format of a single event; BadRequest for a media type that this route does not accept."""
    catalog, headers = foundation_of(request).catalog, request.scope["headers"]
    if media_type == JSON:
        return BodyFormat(catalog, CloudEventReader(catalog, headers) if cloudevents.is_binary(headers) else None)
    if media_type == cloudevents.STRUCTURED:
        return BodyFormat(catalog, CloudEventReader(catalog))
    if media_type in (cloudevents.BATCH, *NDJSON):
        raise BadRequest(f"Content-Type: {media_type} belongs to POST {BATCH_PATH}")
    if cloudevents.is_binary(headers) and cloudevents.is_json(media_type):
        return BodyFormat(catalog, CloudEventReader(catalog, headers))
    raise wrong_type(media_type, f"{JSON} or {cloudevents.STRUCTURED}")


def batch_format(request: Request, media_type: str) -> BodyFormat:
    """The format of each item of a batch; BadRequest for a media type that this route does not accept."""
    catalog = foundation_of(request).catalog
    if media_type == cloudevents.BATCH:
        return BodyFormat(catalog, CloudEventReader(catalog))
    if media_type == cloudevents.STRUCTURED:
        raise BadRequest(f"Content-Type: {media_type} belongs to POST {SINGLE_PATH}")
    if cloudevents.is_binary(request.scope["headers"]):
        raise BadRequest(f"ce-specversion: a CloudEvent in binary mode belongs to POST {SINGLE_PATH}")
    if media_type != JSON and media_type not in NDJSON:
        raise wrong_type(media_type, f"{JSON}, {NDJSON[0]} or {cloudevents.BATCH}")
    return BodyFormat(catalog, one_a_line=media_type in NDJSON)

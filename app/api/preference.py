"""The Prefer header of a batch (RFC 7240): with `handling=lenient` its good events are stored, whatever its others are."""

from typing import Any

from starlette.requests import Request

PARAMETER: dict[str, Any] = {
    "name": "Prefer",
    "in": "header",
    "description": "handling=lenient: store the good events of the batch, and answer 207 with a verdict for each item",
    "schema": {"type": "string"},
}
APPLIED = {"Preference-Applied": "handling=lenient"}


def is_lenient(request: Request) -> bool:
    """Whether the client asks for lenient handling. Of repeated preferences the first counts; unknown ones are ignored."""
    for header in request.headers.getlist("prefer"):
        for preference in header.split(","):
            name, _, value = preference.partition(";")[0].partition("=")
            if name.strip().lower() == "handling":
                return value.strip().strip('"').lower() == "lenient"
    return False

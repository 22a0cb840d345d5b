"""Types of the scalar values in payloads: checked, never converted.

A number with or without fraction is a plain float: strict pydantic accepts ints, doubles and the Decimals that represent
numbers which no double does, but no booleans.
"""

from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from app.errors import BadRequest, InvalidRequest
from app.events import envelope
from app.events.explain import MALFORMED, UNDECODABLE

_INT64_MAX = 2**63 - 1


def date_time_text(text: str) -> str:
    return _checked_as_in_envelope(envelope.parse_timestamp, text)


def uuid_text(text: str) -> str:
    return _checked_as_in_envelope(envelope.parse_uuid, text)


def _checked_as_in_envelope(check: Any, text: str) -> str:
    """`text` if the envelope accepts it. The error's type decides which problem type answers it."""
    try:
        check(text, "")
    except BadRequest as error:
        kind = UNDECODABLE if isinstance(error, InvalidRequest) else MALFORMED
        message = error.detail.partition(": ")[2]  # pydantic adds the pointer before it
        raise PydanticCustomError(kind, "{message}", {"message": message}) from None
    return text


Integer = Annotated[int, Field(ge=-_INT64_MAX - 1, le=_INT64_MAX)]
"""A number without fraction. Readers written in Go have 64 bits for it, so a wider one is refused."""
Int32 = Annotated[int, Field(ge=-(2**31), le=2**31 - 1, json_schema_extra={"format": "int32"})]
Int64 = Annotated[Integer, Field(json_schema_extra={"format": "int64"})]
Count = Annotated[int, Field(ge=0, le=_INT64_MAX)]
Ordinal = Annotated[int, Field(ge=1, le=_INT64_MAX)]
Confidence = Annotated[float, Field(ge=0, le=1)]
"""How sure a model or a search was, from 0 to 1."""
DateTime = Annotated[envelope.DateTime, AfterValidator(date_time_text)]
"""RFC 3339 with zone."""
Uuid = Annotated[envelope.Uuid, AfterValidator(uuid_text)]
Sha256Hex = Annotated[str, Field(pattern=r"^[a-f0-9]{64}$")]

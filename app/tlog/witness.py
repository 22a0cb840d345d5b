"""Asks witnesses to cosign a checkpoint (C2SP tlog-witness, add-checkpoint).

A witness remembers the largest checkpoint of a log that it cosigned. If it has seen more leaves than the log has, a backup was
restored; if it has seen other leaves, the log was rewritten.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Self

from app import metrics
from app.errors import Fatal
from app.tlog.alarm import LogAlarm
from app.tlog.note import (
    COSIGNATURE,
    ML_DSA_44,
    MalformedNote,
    Note,
    PublicKey,
    encoded_base64,
    parse_decimal,
    parse_signatures,
    signature_line,
)

if TYPE_CHECKING:
    import httpx

_TIMEOUT_SECONDS = 2.0
_RESPONSE_BYTES_MAX = 100_000

ProveConsistency = Callable[[int], Awaitable[Sequence[bytes]]]
"""Gives the consistency proof from a smaller size to the checkpoint's."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Witness:
    """Somebody who cosigns: the key, and the URL that add-checkpoint is appended to."""

    key: PublicKey
    url: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """A witness from `vkey URL`. Fatal for any other text."""
        vkey, _, url = text.strip().partition(" ")
        try:
            key = PublicKey.parse(vkey)
        except MalformedNote as error:
            raise Fatal(
                f"DATASTORAGE_WITNESSES has {text!r}: {error}; expected the witness's vkey and its URL."
            ) from None
        if key.algorithm not in {COSIGNATURE, ML_DSA_44} or not url.startswith(("http://", "https://")):
            raise Fatal(
                f"DATASTORAGE_WITNESSES has {text!r}; expected the vkey of a cosignature key (4 or 6), a space and a URL."
            )
        return cls(key, url.rstrip("/"))


class Witnesses:
    """All witnesses, and the size of the log that each has cosigned as far as this process knows."""

    def __init__(self, witnesses: Sequence[Witness]) -> None:
        self._seen_sizes = dict.fromkeys(witnesses, 0)

        self._alarms: dict[Witness, LogAlarm] = {}

    def __bool__(self) -> bool:
        return bool(self._seen_sizes)

    @property
    def alarms(self) -> list[LogAlarm]:
        """Those of witnesses that have seen another log, and have cosigned nothing since."""
        return list(self._alarms.values())

    def restore_sizes(self, size: int, lines: str) -> None:
        """Note which witnesses cosigned the checkpoint of `size`, by the stored lines of its cosignatures.

        MalformedNote when a line is not a signature.
        """
        names = {name for name, _ in parse_signatures(lines)}
        self._seen_sizes = {one: size if one.key.name in names else seen for one, seen in self._seen_sizes.items()}

    def forget_sizes(self) -> None:
        """Of another log no witness has seen anything yet."""
        self._seen_sizes = dict.fromkeys(self._seen_sizes, 0)

    async def cosign(self, note: str, size: int, prove: ProveConsistency) -> str:
        """Ask every witness to cosign the checkpoint of `size`; the lines of the valid signatures.

        A witness that does not cosign is logged and counted.
        """
        import httpx  # noqa: PLC0415 -- a service without witnesses starts without it

        async with httpx.AsyncClient(timeout=_TIMEOUT_SECONDS) as client:
            lines = await asyncio.gather(*(self._ask(client, one, note, size, prove) for one in self._seen_sizes))
        return "".join(lines)

    async def _ask(
        self, client: "httpx.AsyncClient", witness: Witness, note: str, size: int, prove: ProveConsistency
    ) -> str:
        """One witness's line, or nothing. It is asked again if it has seen another size than this process knows."""
        import httpx  # noqa: PLC0415 -- as above

        try:
            response = await self._send(client, witness, note, prove)
            if response.status_code == HTTPStatus.CONFLICT and (seen := _seen_size(response)) is not None:
                if seen > size:
                    return self._raise_alarm(
                        witness, "witness_ahead", f"it has seen {seen} leaves, this log has {size}"
                    )
                self._seen_sizes[witness] = seen
                response = await self._send(client, witness, note, prove)
            line = _verified_line(witness, note, response)
        except (httpx.HTTPError, TimeoutError, MalformedNote) as error:
            return _record_failure(witness, repr(error))
        if line:
            self._seen_sizes[witness] = size
            self._alarms.pop(witness, None)
            return line
        # With the right old size, a witness answers so only if it has seen another tree under the log's name.
        if response.status_code in {HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY}:
            return self._raise_alarm(
                witness, "witness_conflict", f"it has seen another log of this name: {response.text[:200]}"
            )
        return _record_failure(witness, f"{response.status_code} {response.text[:200]}")

    def _raise_alarm(self, witness: Witness, alarm: str, reason: str) -> str:
        metrics.LOG_ALARMS.labels(alarm=alarm).inc()
        what = "a witness has seen another log: a backup was restored, or the log was rewritten"
        log.error(what, extra={"witness": witness.key.name, "alarm": alarm, "reason": reason})
        self._alarms[witness] = LogAlarm(alarm, f"witness {witness.key.name}", f"{what}: {reason}")
        return ""

    async def _send(
        self, client: "httpx.AsyncClient", witness: Witness, note: str, prove: ProveConsistency
    ) -> "httpx.Response":
        old = self._seen_sizes[witness]
        proof = "".join(f"{encoded_base64(one)}\n" for one in await prove(old))
        content = f"old {old}\n{proof}\n{note}".encode()
        # The timeout does not include the proof: a cancelled query would end the transaction.
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            return await client.post(f"{witness.url}/add-checkpoint", content=content)


def _verified_line(witness: Witness, note: str, response: "httpx.Response") -> str:
    """The witness's signature line in its response; empty when it did not sign. MalformedNote when it is not valid."""
    if response.status_code != HTTPStatus.OK or len(response.content) > _RESPONSE_BYTES_MAX:
        return ""
    text = Note.parse(note).text
    for name, signed in parse_signatures(response.text):
        if name == witness.key.name and signed[:4] == witness.key.id and witness.key.verifies(text, signed[4:]):
            return signature_line(name, signed)
    raise MalformedNote("the response has no valid signature of the witness")


def _seen_size(response: "httpx.Response") -> int | None:
    """The size that a witness names in a response of 409; None when it names none."""
    if not response.headers.get("content-type", "").startswith("text/x.tlog.size"):
        return None
    return parse_decimal(response.text.strip(), "the witness's size")


def _record_failure(witness: Witness, reason: str) -> str:
    metrics.WITNESS_FAILURES.labels(witness=witness.key.name).inc()
    log.warning("a witness did not cosign", extra={"witness": witness.key.name, "reason": reason})
    return ""

"""Asks witnesses to cosign a checkpoint (C2SP tlog-witness, add-checkpoint).

A witness remembers the largest tree that it saw of a log. One that knows more of ours than we do saw it before a backup was
restored, or before the log was rewritten.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Self

import httpx

from app import metrics
from app.errors import Fatal
from app.tlog.note import COSIGNATURE, MalformedNote, Note, PublicKey, encoded, number, signature_line, signatures

_TIMEOUT_SECONDS = 2.0
_ANSWER_BYTES_MAX = 100_000

Prove = Callable[[int], Awaitable[Sequence[bytes]]]
"""The consistency proof from a smaller size to the checkpoint's."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Witness:
    """Somebody who cosigns: the key, and the URL below which add-checkpoint stands."""

    key: PublicKey
    url: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `vkey URL`, as lists of witnesses have it. Fatal for anything else."""
        vkey, _, url = text.strip().partition(" ")
        try:
            key = PublicKey.parse(vkey)
        except MalformedNote as error:
            raise Fatal(
                f"DATASTORAGE_WITNESSES holds {text!r}: {error}; expected the witness's vkey and its URL."
            ) from None
        if key.algorithm != COSIGNATURE or not url.startswith(("http://", "https://")):
            raise Fatal(
                f"DATASTORAGE_WITNESSES holds {text!r}; expected the vkey of a cosignature key (4), a space and a URL."
            )
        return cls(key, url.rstrip("/"))


class Witnesses:
    """All of them, and how far each has come as far as this process knows."""

    def __init__(self, witnesses: Sequence[Witness]) -> None:
        self._seen = dict.fromkeys(witnesses, 0)

    def __bool__(self) -> bool:
        return bool(self._seen)

    def remember(self, size: int, lines: str) -> None:
        """What is known from cosignatures that are stored with a checkpoint of `size`."""
        names = {name for name, _ in signatures(lines)}
        self._seen = {one: size if one.key.name in names else seen for one, seen in self._seen.items()}

    async def cosign(self, note: str, size: int, prove: Prove) -> str:
        """The lines of the signatures that were given; a witness that gives none has been logged and counted."""
        async with httpx.AsyncClient(timeout=_TIMEOUT_SECONDS) as client:
            lines = await asyncio.gather(*(self._ask(client, one, note, size, prove) for one in self._seen))
        return "".join(lines)

    async def _ask(self, client: httpx.AsyncClient, witness: Witness, note: str, size: int, prove: Prove) -> str:
        """One witness's line; two rounds, since it may have seen another checkpoint than this process knows of."""
        try:
            answer = await self._send(client, witness, note, prove)
            if answer.status_code == httpx.codes.CONFLICT and (known := _size(answer)) is not None:
                if known > size:
                    return _alarm(witness, "witness_ahead", f"it has seen {known} leaves, this log has {size}")
                self._seen[witness] = known
                answer = await self._send(client, witness, note, prove)
            line = _line(witness, note, answer)
        except (httpx.HTTPError, TimeoutError, MalformedNote) as error:
            return _failed(witness, repr(error))
        if line:
            self._seen[witness] = size
            return line
        # With the right size asked for, only another tree under the same name makes a witness say these.
        if answer.status_code in {httpx.codes.CONFLICT, httpx.codes.UNPROCESSABLE_ENTITY}:
            return _alarm(witness, "witness_conflict", f"it has seen another log of this name: {answer.text[:200]}")
        return _failed(witness, f"{answer.status_code} {answer.text[:200]}")

    async def _send(self, client: httpx.AsyncClient, witness: Witness, note: str, prove: Prove) -> httpx.Response:
        old = self._seen[witness]
        proof = "".join(f"{encoded(one)}\n" for one in await prove(old))
        content = f"old {old}\n{proof}\n{note}".encode()
        # Not around the proof: a query that is cancelled would end the transaction.
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            return await client.post(f"{witness.url}/add-checkpoint", content=content)


def _line(witness: Witness, note: str, answer: httpx.Response) -> str:
    """The witness's own signature out of its answer, verified; empty when there is none."""
    if answer.status_code != httpx.codes.OK or len(answer.content) > _ANSWER_BYTES_MAX:
        return ""
    text = Note.parse(note).text
    for name, signed in signatures(answer.text):
        if name == witness.key.name and signed[:4] == witness.key.id and witness.key.verifies(text, signed[4:]):
            return signature_line(name, signed)
    raise MalformedNote("the answer has no valid signature of the witness")


def _size(answer: httpx.Response) -> int | None:
    if not answer.headers.get("content-type", "").startswith("text/x.tlog.size"):
        return None
    return number(answer.text.strip(), "the witness's size")


def _alarm(witness: Witness, alarm: str, reason: str) -> str:
    metrics.LOG_ALARMS.labels(alarm=alarm).inc()
    log.error(
        "a witness has seen another log: a backup was restored, or the log was rewritten",
        extra={"witness": witness.key.name, "alarm": alarm, "reason": reason},
    )
    return ""


def _failed(witness: Witness, reason: str) -> str:
    metrics.WITNESS_FAILURES.labels(witness=witness.key.name).inc()
    log.warning("a witness did not cosign", extra={"witness": witness.key.name, "reason": reason})
    return ""

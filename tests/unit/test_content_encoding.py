"""Bodies that arrive with gzip: what they become, what is refused, and what they cost."""

import gzip
import os
import zlib
from collections.abc import Sequence

import pytest
from starlette.requests import Request

from app.api.body import ByteBudget, Reservation, read_body
from app.api.content_encoding import PART_BYTES, GzipStream, encoding_of
from app.errors import BadRequest, InboxFull, TooLarge, UnsupportedEncoding


def request(chunks: Sequence[bytes], *encodings: str, reservation: Reservation | None = None) -> Request:
    left = list(chunks)

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    headers = [(b"content-encoding", one.encode()) for one in encodings]
    scope = {"type": "http", "headers": [(b"content-type", b"application/json"), *headers]}
    return Request(scope | {"state": {"reservation": reservation or Reservation(ByteBudget(1 << 30))}}, receive)


@pytest.mark.parametrize("size", [0, 1, 1000, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES])
@pytest.mark.parametrize("pieces", [1, 3, 1000])
async def test_any_body_in_any_pieces(size: int, pieces: int) -> None:
    """A body loses bytes where a part, a piece or the stream ends."""
    for body in (os.urandom(size), b"ab" * (size // 2) + b"c" * (size % 2)):
        packed = gzip.compress(body)
        step = len(packed) // pieces + 1
        chunks = [packed[start : start + step] for start in range(0, len(packed), step)]
        for encoding in ("gzip", "X-GZip", "identity, gzip"):
            assert (await read_body(request([*chunks, b""], encoding), size + 1000))[0] == body


async def test_streams_that_are_not_one_gzip_stream() -> None:
    """A damaged, cut or continued stream is taken for the body, or the answer does not say what is wrong with it."""
    whole = gzip.compress(b"[]" * 1000)
    for sent, says in (
        ([b""], "end is missing"),
        ([b"[]"], "header"),
        ([whole[:-1]], "end is missing"),
        ([whole[:-8] + b"\0" * 8], "check"),
        ([whole + whole], "after its end"),
        ([whole, b"\n"], "after its end"),
        ([zlib.compress(b"[]")], "header"),
    ):
        with pytest.raises(BadRequest, match=says) as refused:
            await read_body(request(sent, "gzip"), 1 << 20)
        assert "Content-Encoding" in refused.value.detail


@pytest.mark.parametrize(
    "sent", [["br"], ["zstd"], ["deflate"], ["gzip, br"], ["gzip", "gzip"], ["gzip, gzip"], ["*"], ["é"]]
)
def test_other_encodings(sent: list[str]) -> None:
    """An encoding that is not read is ignored."""
    with pytest.raises(UnsupportedEncoding):
        encoding_of([(b"content-encoding", one.encode()) for one in sent])


@pytest.mark.parametrize("sent", [[], ["identity"], [""], ["identity, Identity"]])
def test_no_encoding(sent: list[str]) -> None:
    """A body as it is, which says so, is refused."""
    assert encoding_of([(b"content-encoding", one.encode()) for one in sent]) == "identity"


class _Largest(Reservation):
    largest = 0

    def add(self, size: int) -> None:
        super().add(size)
        self.largest = max(self.largest, self.bytes)


async def test_bomb_is_unpacked_only_to_the_limit() -> None:
    """A small body costs the memory that it would become, or the time to unpack all of it."""
    bomb = gzip.compress(b"\0" * (64 << 20))
    budget = ByteBudget(1 << 20)
    largest = 0
    for limit, refusal in ((PART_BYTES * 2, TooLarge), (64 << 20, InboxFull)):
        other, reservation = _Largest(budget), _Largest(budget)
        other.add(100_000)  # another large body, so that this one is not alone
        with pytest.raises(refusal):
            await read_body(request([bomb], "gzip", reservation=reservation), limit)
        largest = max(largest, reservation.largest)
        other.release()
        reservation.release()
    assert largest <= 1 << 20
    assert max(len(part) for part in GzipStream().unpack(bomb)) == PART_BYTES


async def test_stream_that_becomes_nothing() -> None:
    """A body whose every byte unpacks to nothing is read without end."""
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    nothing = packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH) * 100
    with pytest.raises(TooLarge):
        await read_body(request([nothing] * 100, "gzip"), 1000)

"""Compares the answers that clients got with a full read of the database."""

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import asyncpg

from tests.torture.load import Sent
from tests.verification import verify_everything

_ALL = """
SELECT event_id::text AS id, event_data->>'marker' AS marker, event_data::text AS payload, correlation_id, chain_index
FROM audit_events ORDER BY log_index
"""


@dataclass
class Verdict:
    """The result of one comparison. Everything except `acknowledged` must be 0 or empty."""

    acknowledged: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: list[str] = field(default_factory=list)


async def judge(url: str, ledger: list[Sent], *, verify: bool) -> Verdict:
    """`verify` recomputes every chain and the whole log, too."""
    connection = await asyncpg.connect(url, timeout=30)
    try:
        rows = await connection.fetch(_ALL)
        verdict = _compare(ledger, rows)
        if verify:
            try:
                await verify_everything(connection)
            except AssertionError as error:
                verdict.wrong.append(f"does not verify: {str(error)[:500]}")
    finally:
        await connection.close()
    return verdict


def _compare(ledger: list[Sent], rows: list[asyncpg.Record]) -> Verdict:
    verdict = Verdict()
    found: dict[str, list[asyncpg.Record]] = defaultdict(list)
    for row in rows:
        found[row["marker"]].append(row)
    ids = Counter(row["id"] for row in rows)
    for one in (i for i, times in ids.items() if times > 1):
        verdict.wrong.append(f"the id {one} is stored {ids[one]} times")
    for sent in ledger:
        _compare_one(sent, found, verdict)
    verdict.wrong += _disorder(ledger, rows)
    return verdict


def _compare_one(sent: Sent, found: dict[str, list[asyncpg.Record]], verdict: Verdict) -> None:
    counts = [len(found[marker]) for marker in sent.markers]
    if sent.acknowledged:
        verdict.acknowledged += len(counts)
        lost = counts.count(0)
        verdict.lost += lost
        if lost:
            verdict.wrong.append(f"lost {lost} of {len(counts)}: {sent.path} {sent.answers} {sent.markers[0]}")
    elif len({bool(one) for one in counts}) > 1:
        verdict.wrong.append(f"a batch that was not acknowledged is stored in part: {sent.markers[0]}")
    if sent.guarded and (doubled := sum(one - 1 for one in counts if one > 1)):
        verdict.doubled += doubled
        verdict.wrong.append(f"doubled {doubled} of {len(counts)}: {sent.path} {sent.answers} {sent.markers[0]}")
    for status, ids in sent.answers:
        for item, promised in zip(sent.items, ids, strict=True):
            rows = found[item["event_data"]["marker"]]
            if rows and promised not in {row["id"] for row in rows}:
                verdict.wrong.append(f"answered {status} with the id {promised}, stored under {rows[0]['id']}")
            if rows and json.loads(rows[0]["payload"]) != item["event_data"]:
                verdict.wrong.append(f"stored with another payload: {promised}")


def _disorder(ledger: list[Sent], rows: list[asyncpg.Record]) -> list[str]:
    """Of requests that a client sent one after the other to one replica, those whose events are stored in another order."""
    places = {row["marker"]: row["chain_index"] for row in rows}
    last: dict[str, int] = {}
    wrong = []
    for sent in ledger:
        if not sent.ordered:
            continue
        at = [places[marker] for marker in sent.markers if marker in places]
        correlation = sent.items[0]["correlation_id"]
        if at and (at != sorted(at) or at[0] < last.get(correlation, -1)):
            wrong.append(f"out of order in {correlation}: {at[:3]} after {last.get(correlation)}, {sent.markers[0]}")
        last[correlation] = max([*at, last.get(correlation, -1)])
    return wrong

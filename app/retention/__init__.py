"""RETENTION: how long events stay. Holds, purges and erasures change or remove rows; the log has the proof of what they did.

In: orders of auditors and operators (holds, erasures, retention runs), and the policies in audit_retention_policies. Out: rows
that are marked, deleted or erased, and one self event for each such act. Guaranteed: an act and its self event are one
transaction of the log (a whole month is purged in steps, see removal.py), so that verification can distinguish a purge from a loss;
what a hold covers is neither purged nor erased; leaves and proofs stay.

    logged.py    how an act on rows and the self event that records it become one transaction of the log
    holds.py     legal holds: place, release, list
    policy.py    how many days an event stays; the months of the table
    purge.py     a retention run: which rows and months are due, and their removal in batches
    removal.py   the removal of a whole month: purge event, detach, drop, or attach again
    erase.py     the erasure of personal content from rows on request
    claims.py    worker: deletes expired claims of Idempotency-Keys

Whether a gap in the positions is a purge is decided by app/tlog/gaps.py, from the self events that are written here.
"""

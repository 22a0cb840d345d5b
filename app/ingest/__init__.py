"""INGEST, the write path: from a posted item to a committed event, or to one that is safe on disk.

In: items of requests, parsed (app/api/post.py), and the service's own self events. Out: rows of audit_events with their positions
in the log and their links in the chains, and the answer to each request. Guaranteed: 201 means committed, or for a batch during
an outage on disk (fsync); 202 means on disk, for a single event or a notification. A request is written whole or not at all,
and once, however often it is sent. Events of one correlation are written in the order in which they arrived, also across an
outage.

An event goes through these, in this order:

    accept.py               check an item (check_item), then fix its id, times, salt and commitment (accept)
    import_rules.py         which events of an import are refused for their time
    parents.py              dates of the events that others name as their parent
    claim.py                one use of an Idempotency-Key
    submission.py           one request: its events, its claim, the future of its outcome
    writer.py               inbox → flush → Postgres or spool; recognises resends; replays the spool
    link.py                 positions, chain links and leaf hashes of a flush (pure)
    hold_index.py           which events of a flush fall under a legal hold (pure)
    store.py                one flush in one transaction; what happens when Postgres goes away in the middle of it
    partitions.py           worker: monthly tables, created ahead of the events

While Postgres is away:

    spool.py                the queue on local disk: append, replay, quarantine, failure of the disk
    spool_file.py           its SQLite file
    spool_codec.py          events and notifications as bytes in that file
    spool_admin.py          `datastorage spool`: list, export and replay a spool

    notifications.py        notifications, which are not events: checked, then written in one statement
    notification_replay.py  worker: writes spooled notifications to Postgres
    self_events.py          events that the service writes about itself
"""

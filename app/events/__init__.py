"""What an event is. Pure: no I/O, no clock, no database; every other station may import it, and it imports none of them.

In: the bytes of a request body, or a row as it was stored. Out: a checked event, its canonical bytes, its record and hash, or an
error that names each wrong member by its JSON pointer. Guaranteed: no value is altered, equal input gives equal bytes in every
replica and every release, and hashes of version 1 never change.

canonical.py    JSON in and out: parsing without loss, and the canonical form (RFC 8785) that is hashed
envelope.py     the ADR-034 envelope that clients post: members, limits, formats
cloudevents.py  CloudEvents 1.0 as another envelope
otlp/           log records of OpenTelemetry as events
catalog/        the built-in event types and their payloads, one module per producer
custom.py       an operator's own event types, from JSON Schema files
explain.py      faults as messages with JSON pointers
describe.py     event types described for the API, the command line and docs/events.md
ids.py          event ids: random, or derived for a request that can be sent again
record.py       the record of an event, its commitment and its hash: the leaf of the log
reference.py    the hash of the platform's earlier service, to verify rows that have it
neutral.py      the payload that replaces an erased one
positions.py    sets of log positions
"""

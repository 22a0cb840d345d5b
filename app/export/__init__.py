"""Exports: events as a file that anybody can verify without the service. The writer and the checker of a file are side by side.

In comes a query (`ExportQuery`), a database connection in one snapshot, and a key; out goes a stream of bytes. `format=ndjson` and
`csv` are files in parts, each with a manifest that the log's key signs (Ed25519); `format=json` is one page, which the RSA key pair of
the service signs. The file has exactly the events that match in the snapshot; a file that was cut, reordered or edited does not pass
the checker, and a cut one can be resumed. Nothing here writes to the database: the self event of an export is api/export.py's.

Form:
file.py         the records of a file in ndjson and CSV, written and read
manifest.py     the signed statement after each part: an in-toto statement in a DSSE envelope; signed and verified here
bundle.py       the file of a bundle: its members, written and read
certificate.py  the RSA key pair that signs pages: read, or created once

Writing:
select.py       which rows, in which order, in portions that fit into memory
row.py          one row as an exported event, complete or redacted, and whether a row has its own hash
redact.py       masks e-mail and IP addresses, telephone and card numbers
bundle_read.py  all about one correlation for a bundle, in one snapshot; bundle_evidence.py: which self events are about it;
                bundle_proofs.py: the trees and proofs; bundle_page.py: the same in words
parts.py        a file of parts (ndjson, csv), with the token that resumes it
bundle_entry.py the entries of a bundle: an event opened, masked or erased
signed_page.py  one signed page (json), with the check of its events' hashes and links

Checking:
check.py        verifies a file or a page with only a public key: `datastorage verify-export`
bundle_check.py the same for a bundle
result.py       what came out
"""

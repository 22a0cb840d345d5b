"""The transparency log: what outsiders can check of it, in the forms of C2SP that other people's tools read.

In: the leaves that the writer has committed (log_flushes). Out: tiles, signed and cosigned checkpoints, copies of checkpoints,
proofs of single events and of the log's growth. Guaranteed: a checkpoint is signed only if every earlier one that this process,
the database and the file of copies know is a prefix of it, and it is served only after the witnesses were asked. The writer does
not depend on any of this: an event is committed whether or not a checkpoint can be signed.

merkle.py    the tree of RFC 6962: roots and proofs from hashes. Pure
note.py      checkpoints and keys as text: signed notes, vkeys, cosignatures. Pure
proof.py     one event's proof as a file, and its verification. Pure
keys.py      who signs: the log's own key; and public keys from a text or a file
tiles.py     stored leaves and tiles: read them, extend them, roots of any range
signer.py    signs the next checkpoint, or refuses and raises an alarm
witness.py   asks witnesses to cosign a checkpoint
copies.py    copies of checkpoints outside the database: a file, a URL
worker.py    once a second: heartbeat, tiles, sign, ask witnesses, publish, copy
prove.py     proofs from the database: of one event, of the log's growth
evidence.py  what was purged and erased, as recorded in the log itself
gaps.py      whether a gap in a chain is a purge
"""

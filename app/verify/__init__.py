"""Verification: stored rows, chains, log and checkpoints are read again, recomputed and compared.

In: a snapshot of the database, and what the verifier trusts: public keys, a checkpoint from outside. Out: a result with a list
of defects, each with its kind. Guaranteed: only worker.py writes, and only the verifier's own position and findings. No content
of a row ends a verification: a value that cannot be checked is a defect of its row, and the next row is read.

row.py          what is wrong with one row: its hash, its leaf; what a defect is. Pure
chain.py        what is wrong with one chain: links, gaps, head; unsealed rows and json exports have rules of their own. Pure
checkpoints.py  what is wrong with a signed checkpoint. Pure
snapshot.py     reading: one snapshot, rows in portions, pauses for other requests
log.py          a part of the log against the rows at its positions
heads.py        gaps and heads against the leaves of what was purged; all heads together
tree.py         flushes against each other, tiles against leaves, roots at the sizes of checkpoints
unsealed.py     rows that others inserted by SQL, by the rules that they were hashed by
correlation.py  one correlation: its chain, its gaps, its unsealed rows
database.py     everything, cut into work items
processes.py    the work items on all cores
worker.py       the background verifier: round after round, part by part, at a bounded rate
command.py      `datastorage verify`

Whether a gap in a chain is a purge is decided in app/tlog/gaps.py.
"""

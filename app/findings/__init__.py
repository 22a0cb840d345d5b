"""Findings: what verification or the signing of checkpoints found wrong, recorded in the log until somebody acknowledges it.

finding.py      one finding: which defects it has, its id and its payload; pure
register.py     the findings of the log, and those that have left it
recorder.py     writes an event for what is new
acknowledge.py  writes the event that ends one
follow.py       shows in every replica how many stand
command.py      `datastorage findings`
"""

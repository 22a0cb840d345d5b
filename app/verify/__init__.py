"""Proof: what is stored is read again, recomputed, and held against chains and log. Reads only; nothing here writes.

What comes in is a snapshot of the database; what goes out is a list of defects. Nothing that stands in a row can end a
verification: a value that cannot be checked is a defect of its row, and the next row is looked at.
"""

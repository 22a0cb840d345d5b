"""Proof: what was stored is recomputed and held against chains and log. Reads only; nothing here writes."""

"""How long events are kept, and where: partitions are made ahead of time here; later holds and purges."""

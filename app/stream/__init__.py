"""The log as it flows: read in its order from any position, sent to whoever follows it, delivered to destinations."""

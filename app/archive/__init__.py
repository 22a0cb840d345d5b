"""The archive: months of the log as verified files of an Apache Iceberg table, on a disk or in a bucket (docs/archive.md).

In: what the log has and Postgres stores. Out: parts, each a folder of Parquet files, tiles and a signed manifest; and the self event that
records it. A part counts as archived once all of it was read back and verified. Needs the extra `archive`.
"""

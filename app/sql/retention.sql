-- name: ensure_partitions
-- Makes the monthly partitions missing between two days and answers how many; the function runs with its owner's rights.
SELECT ensure_partitions($1, $2)

-- As before; and what the log records of parts of the archive that have expired, or whose files are locked, has no end.
CREATE OR REPLACE FUNCTION is_over(
    moment timestamptz, happened_at timestamptz, kind text, event_days integer, policy audit_retention_policies,
    floor_days integer, ceiling_days integer
) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT happened_at < moment - make_interval(days => LEAST(
        coalesce(policy.ceiling_days, ceiling_days),
        GREATEST(coalesce(policy.floor_days, floor_days), event_days, policy.retention_days)
    )) AND kind NOT IN (
        'datastorage.event.erased', 'datastorage.retention.restored',
        'datastorage.hold.placed', 'datastorage.hold.released', 'datastorage.hold.adopted',
        'datastorage.policy.set', 'datastorage.policy.removed',
        'datastorage.finding.recorded', 'datastorage.finding.acknowledged', 'datastorage.log.continued',
        'datastorage.archive.stored', 'datastorage.archive.expired',
        'datastorage.archive.locked', 'datastorage.archive.unlocked'
    )
$$;

-- Whether the days are over for which an event is kept. Evidence of purges and erasures has no end; of purges, since a later
-- purge repeats what it removes, the bulk does. Findings and their acknowledgements have no end: one that is purged would be forgotten.
CREATE OR REPLACE FUNCTION is_over(
    moment timestamptz, happened_at timestamptz, kind text, event_days integer, policy audit_retention_policies,
    floor_days integer, ceiling_days integer
) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT happened_at < moment - make_interval(days => LEAST(
        coalesce(policy.ceiling_days, ceiling_days),
        GREATEST(coalesce(policy.floor_days, floor_days), event_days, policy.retention_days)
    )) AND kind NOT IN (
        'datastorage.event.erased', 'datastorage.retention.restored',
        'datastorage.finding.recorded', 'datastorage.finding.acknowledged'
    )
$$;

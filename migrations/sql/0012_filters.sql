-- Who did something, and to what: the two questions of people that no other index leads to (docs/decisions/0050). As the index on types
-- they have no event_id: events of one actor with one time are few, and are sorted when they are read.
-- A month that has such an index already, built beforehand without a lock, gives it to these.
CREATE INDEX audit_events_actor ON audit_events (actor_id, event_timestamp);
CREATE INDEX audit_events_resource ON audit_events (resource_id, event_timestamp);

-- What a remediation's assessments are found by; only their own rows pay for it. Without it every answer about one
-- remediation reads all of its events, and the history of a resource all events of each of its remediations.
CREATE INDEX audit_events_effectiveness ON audit_events (correlation_id, event_timestamp)
    WHERE event_category = 'effectiveness';
-- What was done to a resource, newest first; one row of each remediation pays for it.
CREATE INDEX audit_events_workflow_created ON audit_events (left(event_data->>'target_resource', 200), event_timestamp)
    WHERE event_type = 'remediation.workflow_created';

-- The same as before, and the category beside it: lists tell of thousands of events without reading a row.
DROP INDEX audit_events_correlation;
CREATE INDEX audit_events_correlation ON audit_events (correlation_id, event_timestamp) INCLUDE (event_category);

CREATE INDEX notification_audit_remediation ON notification_audit (remediation_id, sent_at, id);
CREATE INDEX notification_audit_sent ON notification_audit (sent_at, id);

"""Log records of OpenTelemetry as events: OTLP 1.x, of which a collector or an SDK sends ExportLogsServiceRequest.

In: the bytes of a request. Out: its log records one by one, each as a LogRecord or with the reason why it cannot be read, and the
ADR-034 item that a record becomes. docs/receivers.md has the table.

log_record.py  what a record is here, whichever encoding it came in
protobuf.py    records of the binary encoding, with the package of the extra `otlp`
json_form.py   records of the JSON encoding
mapping.py     which member of the envelope comes from where
"""

"""Reads events back: pages of events, and reports about one remediation or one target. Reads only.

In comes a query (a frozen model that api/ parsed) or an id; out go rows in the form of the answer. A report and a page of
correlations are read in one snapshot; the number of events in all is counted after their page, in a statement of its own. Every
statement is bounded, so that no answer takes all memory. A row that only SQL can have inserted does not stop the page that it is on.
DatabaseAway or DatabaseFailed is raised when Postgres does not answer.

A new filter goes into filter.py, which says what it needs; OpenAPI, counting, paging and exports follow.

filter.py               which events a query asks for: the fields, and the SQL condition of each
page.py                 one page of events with their number in all, or one event by its id
rows.py                 the rows of a page, read at once where an index has them, else scanned for
offset.py               deep offsets, by what the roll-up has counted
sharing.py              answers that equal questions share
total.py                how many events match: from the roll-up, else from the rows
cursor.py               where the next page begins, as opaque text
correlations.py         one page of correlations, the one with the newest event first
notifications.py        one page of notifications
timeline.py             everything about one correlation: events, phases, decisions, notifications, holds
reconstruct.py          a lost RemediationRequest, rebuilt from its events
effectiveness.py        whether a remediation worked, from its assessments
remediation_history.py  what was done to one target before, and whether it worked
shapes.py               whether a stored payload has the members and JSON types of its event type
timebounds.py           the forms in which `since` and `until` name a time
postgres_time.py        times that Python cannot represent, between Postgres and RFC 3339
compiled.py             SQLAlchemy Core as text for the driver
warming.py              runs the statements of the reports once before the service is ready
"""

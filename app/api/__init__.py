"""HTTP: a request comes in, is parsed and checked, calls one function of a station, and goes out as a response.

The way of a request: the front (id, limits, access control) → the handler (parses the body, or the query string into a
query) → one function of ingest, query, verify, export, retention or tlog, with what `service_of` returns → JSON. Every error
on this way is an AuditError, and becomes a problem document. Guaranteed: a guarded path answers only callers with the verb
`get`; a request that is not valid has changed nothing; 201 means committed, or for a batch during an outage on disk (fsync),
and 202 on disk, for a single event or a notification; no handler runs a query before the database has been seen (503 until
then). A new filter of events goes into query/filter.py: the query string and the OpenAPI document follow its model. If its
value is not text, it also needs a reader in filters.py.

On the way of every request:
front.py          what every request and response passes: id, limits, access control, errors, metrics, access log
access.py         which verb each route requires, who is admitted, what the caller is called, audit of reads
service.py        the one object with everything that handlers need, and the function that returns it
browser.py        security headers and CORS
proxies.py        the client's address, from X-Forwarded-For of trusted proxies
reading.py        how many reads run at once, and whose turn is next
ratelimit.py      how often one caller may read
problems.py       errors as problem documents; unknown paths and methods
body.py           bodies: size, media type, the budget of bytes; JSON responses
parameters.py     query strings read into models; correlation ids in paths
filters.py        the filters of events, read on every route that has them
routes.py         routes that are described when somebody asks for the OpenAPI document
known.py          the refusal of parameters that a route of ours does not know
paging.py         pagination, the Link to the next page, errors that a cursor causes
streaming.py      large responses: pieces, and the time that a client may take for them
deadline.py       the time that a query may take

Routes:
post.py           POST of events, single and in batches; body_formats.py: ADR-034 and CloudEvents;
                  idempotency.py: the Idempotency-Key header
otlp.py           POST of OpenTelemetry's log records; otlp_answers.py: what its clients are answered
kubernetes.py     POST of audit events of Kubernetes
events.py         GET of events: a page, and one by id
eventtypes.py     GET of event types
timeline.py       GET of correlations: the list, and one with its timeline
notifications.py  POST and GET of notifications
holds.py          POST, GET and DELETE of legal holds
verify.py         POST verify-chain
proofs.py         GET of inclusion and consistency proofs
tlog.py           GET of checkpoint, tiles and keys, open to everybody
export.py         GET of exports, and of the certificate that signs them
bundle.py         GET of a bundle: one correlation with its proofs
reconstruct.py    POST and GET of a reconstructed RemediationRequest
effectiveness.py  GET of a remediation's effectiveness
history.py        GET of the earlier remediations of a resource
health.py         liveness, readiness, metrics, and ports of their own for them
profile.py        a profile of the process, on the health port only
"""

"""Authentication and authorization: a bearer token comes in, an Identity and a yes or no for a verb go out.

Three identity providers, one or several of them at once: a file of tokens, an OpenID Connect issuer, and the Kubernetes API
server. Guaranteed: what a provider does not clearly allow is refused, and while a provider cannot be asked it admits nobody.
No token is stored, only its SHA-256 digest.

authenticator.py  asks the configured providers in turn, and remembers what they answered for a short time
identity.py       what is known of a caller: its name, its roles and verbs, whether its reads are audited
tokens.py         the file of tokens, and `datastorage token create`
oidc.py           JSON Web Tokens of one issuer, verified by its published keys
kubernetes.py     TokenReview and SubjectAccessReview
review_cache.py   the short memory: one review for all who ask at the same time
"""

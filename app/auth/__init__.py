"""Who calls, and may they? A bearer token comes in, an Identity and a yes or no go out.

Three judges, one or several at once: a file of tokens, an OpenID Connect issuer, the Kubernetes API server. Whatever a judge
does not clearly allow is refused, and one that cannot be asked lets nobody in. No token is kept, only its digest.
"""

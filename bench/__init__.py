"""What the service costs and how fast it is, measured on this machine, targets beside results: `make bench`.

Postgres, the service, the service without a database, and the client (this process) are separate processes. Writes are
measured in alternating rounds, so that a slow minute of the machine hits every contender; ratios are taken inside a round.
"""

"""The command `datastorage`: each subcommand parses its arguments, calls one function and shows the result.

In: arguments, DATASTORAGE_ variables. Out: text or JSON, an exit code (exits.py). Guaranteed: a text of an event never reaches a
terminal as a control character, and no error as a traceback. What a command needs is imported when it runs: `--help` and the
clients start without the service.

command.py   main(): runs one command, turns errors into one line and an exit code
parser.py    the parser of all commands; a command is added to the module of its group, by that module's add()
exits.py     the exit codes
output.py    what is shown: tables, texts, JSON, pager, progress; times.py the times in it
client.py    the service that clients ask: --url, --token, requests, problems in words; filters.py which events they ask for,
             pages.py lists page after page
database.py  settings with the database that a command works on

Clients      show.py (correlations), searching.py (events, notifications, counts), proofs.py (one event's proof, the log's keys),
             holds.py, trusting.py (what the log rests on), trying.py (whether a service works), exporting.py, importing.py (with import_file.py), simulating.py
Offline      verifying.py (proofs, timestamps, exports, keys)
On Postgres  running.py (serve, migrate, health), auditing.py (verify, findings, log), retention.py (retention, erase),
             delivering.py (sink), spool.py
Describing   describing.py (event types, OpenAPI, tokens), describing_settings.py
"""

from app.cli.command import main

__all__ = ["main"]

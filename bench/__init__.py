"""How fast the service is, and how close to what the machine can do. `python -m bench --help`."""

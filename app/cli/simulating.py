"""`datastorage simulate`: plays remediations against a service."""

import argparse

from app import simulate
from app.cli.client import Service, add_service
from app.cli.parser import Commands


def add(commands: Commands) -> None:
    simulation = commands.add_parser("simulate", help="play remediations and post what the orchestrator would post")
    simulation.description = (
        "Exit code 1: an event was refused, or one that was acknowledged is missing; 2: no service answers."
    )
    simulate.add_arguments(simulation)
    add_service(simulation)
    simulation.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    service = Service.of(arguments)
    arguments.url, arguments.token, arguments.trusted = service.url, service.token, service.trusted
    return simulate.run(arguments)

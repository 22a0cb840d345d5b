"""Routes that are described when somebody asks for the OpenAPI document: schemas of all answers would take a fifth of the service's start."""

from collections.abc import Callable
from functools import partial
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import BaseModel


class Route(APIRoute):
    """A route whose `responses`, and values of `openapi_extra` that are functions without arguments, wait for `describe`."""

    def __init__(
        self,
        path: str,
        endpoint: Callable[..., Any],
        *,
        responses: dict[int | str, dict[str, Any]] | None = None,
        **options: Any,
    ) -> None:
        self._responses = responses
        super().__init__(path, endpoint, **options)

    def describe(self) -> None:
        """Complete what the framework makes the document of."""
        described = APIRoute(self.path, self.endpoint, responses=self._responses, name=self.name, methods=self.methods)
        self.responses, self.response_fields = described.responses, described.response_fields
        extra = self.openapi_extra or {}
        self.openapi_extra = {name: value() if callable(value) else value for name, value in extra.items()}


class Answer(BaseModel, defer_build=True):
    """What a route answers. Most answers are written without their model, which then only describes them."""


Router = partial(APIRouter, route_class=Route)
"""The routes of one module of the API."""

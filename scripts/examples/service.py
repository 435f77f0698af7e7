"""A web service that trains: start, watch by server-sent events, pause, resume, stop.

uvicorn --factory scripts.examples.service:make
curl -X POST localhost:8000/run -d '{"environment": "CartPole-v1", "collection": {"environments": 32}}'
curl localhost:8000/run/events
"""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.abc
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from orchestrator import ConfigurationError, Trainer
from orchestrator.config_file import from_table

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from starlette.requests import Request
    from starlette.responses import Response

    from orchestrator import Run


class Service:
    """At most one run at a time."""

    def __init__(self) -> None:
        self.run: Run | None = None
        self.tasks: anyio.abc.TaskGroup

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncGenerator[None]:
        async with anyio.create_task_group() as self.tasks:
            yield
            self.tasks.cancel_scope.cancel()

    async def start(self, request: Request) -> Response:
        try:
            self.run = await self.tasks.start(self._train, Trainer(from_table(await request.json())))
        except ConfigurationError as error:
            return JSONResponse({"problems": [problem.cure for problem in error.problems]}, status_code=422)
        return JSONResponse({"run": self.run.run_id}, status_code=201)

    async def _train(self, trainer: Trainer, *, task_status: anyio.abc.TaskStatus[Run]) -> None:
        async with trainer.start() as run:
            task_status.started(run)
            await run.result()

    async def events(self, request: Request) -> Response:
        return StreamingResponse(self._events(), media_type="text/event-stream")

    async def _events(self) -> AsyncIterator[str]:
        assert self.run is not None
        async for state in self.run.states():
            yield f"data: {json.dumps({'epoch': state.epoch, 'agent_step': state.agent_step})}\n\n"

    async def control(self, request: Request) -> Response:
        assert self.run is not None
        {"pause": self.run.pause, "resume": self.run.resume, "stop": self.run.stop}[request.path_params["what"]]()
        return JSONResponse({"epoch": self.run.state.epoch})

    async def ping(self, request: Request) -> Response:
        return JSONResponse({"epoch": self.run.state.epoch if self.run else None})


def make() -> Starlette:
    """The application."""
    service = Service()
    routes = [
        Route("/run", service.start, methods=["POST"]),
        Route("/run/events", service.events),
        Route("/run/{what:str}", service.control, methods=["POST"]),
        Route("/ping", service.ping),
    ]
    return Starlette(routes=routes, lifespan=service.lifespan)

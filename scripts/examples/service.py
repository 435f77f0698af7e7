"""A web service that trains, one run at a time: start it, watch it by server-sent events, pause, resume, stop it.

RUNS=runs uvicorn --factory scripts.examples.service:make    (without RUNS, runs leave no files and no checkpoints)
curl -X POST localhost:8000/run -d '{"environment": "CartPole-v1", "collection": {"num_environments": 32}}'
curl localhost:8000/run
curl localhost:8000/run/events
curl -X POST localhost:8000/run/checkpoint
curl -X POST localhost:8000/run/stop
"""

from __future__ import annotations

import json
import os
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from orchestrator import ConfigurationError, Trainer, from_table

ENVIRONMENTS = ("Acrobot-v1", "CartPole-v1", "MountainCar-v0", "Pendulum-v1")
"""What a request may ask for: whoever reaches the service has these run on it, and nothing else."""
SETTINGS = {"environment", "total_agent_steps", "seed", "staleness", "collection", "learning", "losses", "policy"}
"""The rest says where this machine reads, writes and connects to, which is not for a request to say."""

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from starlette.requests import Request
    from starlette.responses import Response

    from orchestrator import Run


class Service:
    """At most one run at a time; the last one can be asked for until the next one starts."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        """Where runs have their folders; None: they have none."""
        self.run: Run | None = None
        self.busy = False
        """From the request for a run to its end: other requests come while one starts."""
        self.tasks: anyio.abc.TaskGroup

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncGenerator[None]:
        async with anyio.create_task_group() as self.tasks:
            yield
            self.tasks.cancel_scope.cancel()

    async def start(self, request: Request) -> Response:
        try:
            settings = json.loads(await request.body())
        except ValueError as error:
            return _refusal(400, f"the body is no JSON: {error}")
        except RecursionError:
            return _refusal(400, "the body has too many levels of lists and objects within each other")
        if not isinstance(settings, dict):
            return _refusal(422, f"the body is {settings!r}, expected an object of settings")
        refused = sorted(settings.keys() - SETTINGS)
        if refused:
            return _refusal(422, f"a request may not set {', '.join(refused)}, only {', '.join(sorted(SETTINGS))}")
        if settings.get("environment", "CartPole-v1") not in ENVIRONMENTS:
            return _refusal(422, f"{settings['environment']!r} is none of {', '.join(ENVIRONMENTS)}")
        if self.busy:
            return _refusal(409, "a run is in progress: stop it first, by POST /run/stop")
        self.busy = True
        try:
            self.run = await self.tasks.start(self._train, settings)
        except ConfigurationError as error:
            return _refusal(422, *(str(problem) for problem in error.problems))
        except Exception as error:
            return _refusal(500, f"the run could not be started: {error}")
        return JSONResponse(self.state(), status_code=201)

    async def _train(self, settings: dict[str, Any], *, task_status: anyio.abc.TaskStatus[Run]) -> None:
        started = False
        try:
            config = from_table(settings)
            if self.folder is not None:
                config = replace(config, run_dir=self.folder / f"{datetime.now():%Y%m%d-%H%M%S-%f}")
            async with Trainer(config, trust_code=False).start() as run:
                started = True
                task_status.started(run)
                await run.result()
        except Exception:
            if not started:
                raise
            # A run that fails is not the end of the service: `Run.error` has what it failed with.
        finally:
            self.busy = False

    def state(self) -> dict[str, object]:
        """The run as a client sees it."""
        if self.run is None:
            return {"run": None, "status": "none"}
        run, error = self.run, self.run.error
        return {
            "run": run.run_id,
            "folder": None if run.run_dir is None else str(run.run_dir),
            "status": run.status,
            "epoch": run.state.epoch,
            "agent_step": run.state.agent_step,
            "checkpoint": run.state.latest_checkpoint_uri,
            "error": None if error is None else f"{type(error).__name__}: {error}",
        }

    async def show(self, _: Request) -> Response:
        return JSONResponse(self.state())

    async def events(self, _: Request) -> Response:
        if self.run is None:
            return _refusal(404, "no run has been started")
        return StreamingResponse(self._events(self.run), media_type="text/event-stream")

    async def _events(self, run: Run) -> AsyncIterator[str]:
        async for state in run.states():
            yield f"data: {json.dumps({'epoch': state.epoch, 'agent_step': state.agent_step})}\n\n"

    async def control(self, request: Request) -> Response:
        what = request.path_params["what"]
        if what not in ("pause", "resume", "stop", "checkpoint"):
            return _refusal(404, f"there is no {what!r}: pause, resume, stop or checkpoint")
        run = self.run
        if run is None:
            return _refusal(404, "no run has been started")
        if what == "checkpoint" and run.run_dir is None:
            return _refusal(409, "the service keeps no files: start it with RUNS=<folder> in its environment")
        {"pause": run.pause, "resume": run.resume, "stop": run.stop, "checkpoint": run.request_checkpoint}[what]()
        return JSONResponse(self.state())


def _refusal(status: int, *problems: str) -> Response:
    return JSONResponse({"problems": problems}, status_code=status)


def make() -> Starlette:
    """The application."""
    service = Service(Path(os.environ["RUNS"]) if os.environ.get("RUNS") else None)
    routes = [
        Route("/run", service.start, methods=["POST"]),
        Route("/run", service.show),
        Route("/run/events", service.events),
        Route("/run/{what:str}", service.control, methods=["POST"]),
    ]
    return Starlette(routes=routes, lifespan=service.lifespan)

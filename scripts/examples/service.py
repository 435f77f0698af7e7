"""A web service that trains, one run at a time: start, watch, pause, resume and stop it by requests, or on its page.

    TOKEN=... RUNS=runs python -m scripts.examples.service --port 8000

RUNS is the folder for runs (without it, they leave no files and no checkpoints). With TOKEN, requests need the header
`Authorization: Bearer <TOKEN>`; without it, the service listens on this machine only. ENVIRONMENTS replaces the list of
environments that may be asked for, separated by commas. On SIGTERM or Ctrl-C, the run is ended with a checkpoint, from
which `orchestrator train --resume <folder>` resumes it.

    curl localhost:8000/run -d '{"environment": "CartPole-v1", "collection": {"num_environments": 32}}'
    curl localhost:8000/run
    curl localhost:8000/run/events
    curl -X POST localhost:8000/run/checkpoint        (or pause, resume, stop)

Refused, each with its reasons as {"problems": [...]}: 400 no JSON, 401 a wrong token, 403 a page of another site, or
another name for this machine, 404 no run, 409 not now, 422 wrong settings.
"""

from __future__ import annotations

import argparse
import hmac
import ipaddress
import json
import math
import os
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import anyio
import anyio.abc
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.routing import Route

from orchestrator import ConfigurationError, OrchestratorError, Trainer, from_table

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

    from orchestrator import Run
    from state import TrainerState

ENVIRONMENTS = ("Acrobot-v1", "CartPole-v1", "MountainCar-v0", "Pendulum-v1")
"""What a request may ask for: whoever reaches the service has these run on it, and nothing else."""
SETTINGS = {"environment", "total_agent_steps", "seed", "staleness", "collection", "learning", "losses", "policy"}
"""The rest says where this machine reads, writes and connects to, which is not for a request to say."""
OVER = ("ended", "failed", "cancelled")
PAGE = Path(__file__).with_suffix(".html")
POINTS = 2000
"""Of a run's curve, at most; a longer one keeps every second point."""
EPOCH_SECONDS, END_SECONDS, STREAM_SECONDS = 5.0, 15.0, 2
"""When the service shuts down: what the epoch in progress has to finish, then the end of the run with its checkpoint;
before both, whoever still watches."""


class Service:
    """At most one run at a time; the last one can be asked for until the next one starts."""

    def __init__(self, folder: Path | None, environments: Sequence[str]) -> None:
        self.folder = folder
        """Where runs have their folders; None: they have none."""
        self.environments = environments
        self.run: Run | None = None
        self.points: list[dict[str, object]] = []
        """The curve of the run so far."""
        self.phase: Literal["idle", "starting", "training"] = "idle"
        """Set before anything is awaited: of two requests for a run, the second is refused."""
        self.ended = anyio.Event()
        self.tasks: anyio.abc.TaskGroup

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncGenerator[None]:
        async with anyio.create_task_group() as self.tasks:
            yield
            if self.run is not None and self.phase == "training":
                await self._end(self.run)
            self.tasks.cancel_scope.cancel()

    async def _end(self, run: Run) -> None:
        """End a run with a checkpoint, within bounds."""
        run.stop("the service shuts down")
        run.limit_drain(END_SECONDS)
        with anyio.move_on_after(EPOCH_SECONDS):
            await self.ended.wait()
        if not self.ended.is_set():
            run.stop_now("the service shuts down")
            with anyio.move_on_after(END_SECONDS):
                await self.ended.wait()

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
        environment = settings.setdefault("environment", self.environments[0])
        if environment not in self.environments:
            return _refusal(422, f"the environment {environment!r} is none of {', '.join(self.environments)}")
        while self.phase == "training" and self.run is not None and self.run.status in OVER:
            await self.ended.wait()  # its workers are just being closed
        if self.phase != "idle":
            return _refusal(409, "a run is in progress: stop it first, by POST /run/stop, and wait for its end")
        self.phase = "starting"
        try:
            await self.tasks.start(self._train, settings)
        except ConfigurationError as error:
            return _refusal(422, *(str(problem) for problem in error.problems))
        except Exception as error:
            wrong = isinstance(error, OrchestratorError) and isinstance(error, ValueError)
            return _refusal(422 if wrong else 500, f"the run could not be started: {error}")
        return _Json(self.state(), status_code=201)

    async def _train(self, settings: dict[str, Any], *, task_status: anyio.abc.TaskStatus[None]) -> None:
        try:
            config = from_table(settings)
            if self.folder is not None:
                config = replace(config, run_dir=self.folder / f"{datetime.now():%Y%m%d-%H%M%S-%f}")
            async with Trainer(config, trust_code=False).start() as run:
                self.run, self.points, self.ended = run, [], anyio.Event()
                self.phase = "training"
                task_status.started()
                async for state in run.states():
                    self.points.append(_point(state))
                    if len(self.points) > POINTS:
                        del self.points[1::2]
        except Exception:
            if self.phase == "starting":
                raise
            # A run that fails is not the end of the service: `Run.error` has what it failed with.
        finally:
            self.phase = "idle"
            self.ended.set()

    def state(self) -> dict[str, object]:
        """The run as a client sees it."""
        if self.phase == "starting":
            return {"run": None, "status": "starting"}
        if self.run is None:
            return {"run": None, "status": "none"}
        run, error = self.run, self.run.error
        return {
            "run": run.run_id,
            "environment": run.config.environment,
            "folder": None if run.run_dir is None else str(run.run_dir),
            "status": run.status,
            "epoch": run.state.epoch,
            "agent_step": run.state.agent_step,
            "checkpoint": run.state.latest_checkpoint_uri,
            "error": None if error is None else f"{type(error).__name__}: {error}",
        }

    async def show(self, _: Request) -> Response:
        return _Json(self.state())

    async def page(self, _: Request) -> Response:
        here = "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"
        return HTMLResponse(PAGE.read_text(), headers={"Content-Security-Policy": here})

    async def events(self, request: Request) -> Response:
        """Each epoch from now on, or with `Last-Event-ID`, as a browser sends it, each after that one."""
        if self.run is None:
            return _refusal(404, "no run has been started")
        last = request.headers.get("last-event-id", "")
        seen = int(last) if last.isdecimal() and len(last) < POINTS else None
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(self._events(self.run, seen), media_type="text/event-stream", headers=headers)

    async def _events(self, run: Run, seen: int | None) -> AsyncIterator[str]:
        if seen is not None:
            for point in [point for point in self.points if _epoch(point) > seen]:
                seen = _epoch(point)
                yield _event(point)
        async for state in run.states():
            if seen is None or state.epoch > seen:
                yield _event(_point(state))

    async def control(self, request: Request) -> Response:
        what = request.path_params["what"]
        if what not in ("pause", "resume", "stop", "checkpoint"):
            return _refusal(404, f"there is no {what!r}: pause, resume, stop or checkpoint")
        if self.phase == "starting":
            return _refusal(409, "the run is still starting: try again")
        run = self.run
        if run is None:
            return _refusal(404, "no run has been started")
        if self.phase == "idle":
            return _refusal(409, f"the run is over: {run.status}")
        if what == "checkpoint" and run.run_dir is None:
            return _refusal(409, "the service keeps no files: start it with RUNS=<folder> in its environment")
        {"pause": run.pause, "resume": run.resume, "stop": run.stop, "checkpoint": run.request_checkpoint}[what]()
        return _Json(self.state())


class Guard:
    """Refuses requests without the token, and those that the page of another site has a browser send."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app = app
        self.expected = f"Bearer {token}".encode() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(Request(scope)) if scope["type"] == "http" else None
        await (refusal or self.app)(scope, receive, send)

    def _refusal(self, request: Request) -> Response | None:
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
            return _refusal(403, f"a page of {origin} may not ask this service for anything")
        given = request.headers.get("authorization", "").encode("latin-1")
        if self.expected is None:
            host = request.headers.get("host", "")
            if _is_loopback(urlsplit(f"//{host}").hostname or ""):
                return None
            # A page of a site whose name has come to stand for this machine.
            return _refusal(403, f"without TOKEN, the service is called localhost or 127.0.0.1, and not {host!r}")
        # Not the URL's path, which a Host header can change.
        if request.scope["path"] == "/" or hmac.compare_digest(given, self.expected):
            return None
        return _refusal(401, "give the service's token in a header, Authorization: Bearer <TOKEN>")


def _point(state: TrainerState) -> dict[str, object]:
    tracker, timer = state.stats_tracker, state.timer
    rate = None if timer is None else timer.rate("agent_step")
    mean = None if tracker is None else tracker.recent_mean("episode_return")
    numbers = {"return": mean, "rate": rate}
    finite = {name: value if value is not None and math.isfinite(value) else None for name, value in numbers.items()}
    return {"epoch": state.epoch, "agent_step": state.agent_step, **finite}


def _epoch(point: dict[str, object]) -> int:
    return int(str(point["epoch"]))


def _event(point: dict[str, object]) -> str:
    return f"id: {point['epoch']}\ndata: {json.dumps(point)}\n\n"


class _Json(JSONResponse):
    """As it was given: also halves of characters, which only escapes can express."""

    def render(self, content: object) -> bytes:
        return json.dumps(content).encode()


def _refusal(status: int, *problems: str) -> Response:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return _Json({"problems": problems}, status_code=status, headers=headers)


def make() -> Starlette:
    """The application, as the environment's variables say."""
    environments = [name for name in os.environ.get("ENVIRONMENTS", "").split(",") if name] or ENVIRONMENTS
    service = Service(Path(os.environ["RUNS"]) if os.environ.get("RUNS") else None, environments)
    routes = [
        Route("/", service.page),
        Route("/run", service.start, methods=["POST"]),
        Route("/run", service.show),
        Route("/run/events", service.events),
        Route("/run/{what:str}", service.control, methods=["POST"]),
    ]
    guard = Middleware(Guard, token=os.environ.get("TOKEN", ""))
    return Starlette(routes=routes, lifespan=service.lifespan, middleware=[guard])


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves until a signal comes."""
    import uvicorn

    parser = argparse.ArgumentParser(description="A web service that trains, one run at a time.")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; another than this machine's needs TOKEN"
    )
    parser.add_argument("--port", type=int, default=8000, help="0: any free one, which the log names")
    given = parser.parse_args(arguments)
    if not os.environ.get("TOKEN") and not _is_loopback(given.host):
        parser.error(
            f"--host {given.host} is reached from other machines: set TOKEN in the environment, for requests to give"
        )
    uvicorn.run(make(), host=given.host, port=given.port, timeout_graceful_shutdown=STREAM_SECONDS)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    main()

"""Training inside of a web service, with a real server and real requests over loopback."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import httpx
import pytest
import pytest_asyncio
import uvicorn

from orchestrator import find_resume_source
from scripts.examples.service import make
from tests.orchestrator.training import worker_processes

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.slow


@pytest_asyncio.fixture
async def client() -> AsyncGenerator[httpx.AsyncClient]:
    async with serving() as http:
        yield http


@asynccontextmanager
async def serving() -> AsyncGenerator[httpx.AsyncClient]:
    server = uvicorn.Server(uvicorn.Config(make(), port=0, log_level=logging.ERROR, lifespan="on"))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    service = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
        yield http
    server.should_exit = True
    await service
    assert not worker_processes(), "the service has shut down while a run was going on"


async def start(client: httpx.AsyncClient, **settings: object) -> httpx.Response:
    collection = {"num_environments": 16, "horizon": 64}
    return await client.post("/run", json={"total_agent_steps": 10**9, "collection": collection, **settings})


async def epochs(client: httpx.AsyncClient, count: int) -> list[int]:
    seen: list[int] = []
    async with client.stream("GET", "/run/events") as response:
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                seen.append(json.loads(line.removeprefix("data: "))["epoch"])
                if len(seen) == count:
                    break
    return seen


@pytest.mark.asyncio
async def test_a_service_starts_watches_pauses_resumes_and_stops_a_run(client: httpx.AsyncClient) -> None:
    assert (await client.get("/run")).json()["status"] == "none"
    refused = await start(client, environment="CartPol-v1")
    assert refused.status_code == 422
    assert "CartPole-v1" in refused.text
    assert (await start(client)).status_code == 201
    seen = await epochs(client, 3)
    assert seen == sorted(set(seen))

    assert (await client.post("/run/pause")).json()["status"] == "paused"
    before = -1
    while (now := (await client.get("/run")).json()["epoch"]) != before:
        before = now
        await asyncio.sleep(0.1)
    await client.post("/run/resume")
    assert (await epochs(client, 2))[-1] > now

    await client.post("/run/stop")
    rest = await epochs(client, 10**9)
    assert rest[-1] == (await client.get("/run")).json()["epoch"]


@pytest.mark.asyncio
async def test_a_service_without_a_folder_takes_no_checkpoint(client: httpx.AsyncClient) -> None:
    await start(client)
    refused = await client.post("/run/checkpoint")
    assert refused.status_code == 409
    assert "RUNS" in refused.text


@pytest.mark.asyncio
async def test_a_service_with_a_folder_saves_its_runs_so_that_they_can_be_resumed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    async with serving() as client:
        assert (await start(client)).status_code == 201
        await client.post("/run/checkpoint")
        with anyio.fail_after(100):
            while (state := (await client.get("/run")).json())["checkpoint"] is None:
                await asyncio.sleep(0.05)
        assert Path(state["folder"]).parent == tmp_path / "runs"
        await client.post("/run/stop")
        await epochs(client, 10**9)
    source = find_resume_source(state["folder"])
    assert source.checkpoint.epoch >= 1


@pytest.mark.asyncio
async def test_a_service_that_shuts_down_takes_its_run_with_it(client: httpx.AsyncClient) -> None:
    await start(client)
    await epochs(client, 1)
    assert worker_processes()


@pytest.mark.asyncio
async def test_of_two_requests_at_once_a_service_starts_one_run(client: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(*(start(client) for _ in range(3)))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409]
    await epochs(client, 1)
    assert len(worker_processes()) == 2, "one collector and one learner"


@pytest.mark.asyncio
async def test_a_run_that_fails_is_not_the_end_of_the_service(client: httpx.AsyncClient) -> None:
    assert (await start(client, learning={"learning_rate": 1e38})).status_code == 201
    await epochs(client, 10**9)
    failed = (await client.get("/run")).json()
    assert failed["status"] == "failed"
    assert "is not finite" in failed["error"]
    assert (await start(client)).status_code == 201
    assert (await client.get("/run")).json()["status"] == "running"
    assert (await client.get("/run")).json()["error"] is None


@pytest.mark.asyncio
async def test_a_run_that_cannot_start_leaves_the_service_free(client: httpx.AsyncClient) -> None:
    assert (await start(client, environment="CartPol-v1")).status_code == 422
    assert (await start(client)).status_code == 201


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/run/events", "", 404),
        ("POST", "/run/stop", "", 404),
        ("POST", "/run/dance", "", 404),
        ("POST", "/run", "{", 400),
        ("POST", "/run", "[]", 422),
        ("POST", "/run", "[" * 100_000, 400),
        ("POST", "/run", '{"a": ' * 100_000, 400),
        ("POST", "/run", b"\xff\xfe{", 400),
        ("POST", "/run", '{"total_agent_steps": "many"}', 422),
    ],
)
async def test_a_request_that_cannot_be_met_is_refused_with_a_reason(
    client: httpx.AsyncClient, method: str, path: str, body: str | bytes, status: int
) -> None:
    answer = await client.request(method, path, content=body)
    assert answer.status_code == status
    assert answer.json()["problems"][0]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "settings",
    [
        {"environment": "subprocess:call", "collection": {"environment_options": {"args": "touch {victim}"}}},
        {"environment": "tests.environments:make_counting"},
        {"environment": "orchestrator.environments.memory:make"},
        {"environment": 7},
        {"policy": {"network": "torch:load"}},
        {"losses": {"names": ["torch:load"]}},
        {"collection": {"environment_options": {"id": "antigravity:Fly-v0"}}},
        {"metrics": {"sinks": ["torch:load"]}},
        {"run_dir": "{victim}"},
        {"checkpoints": {"upload": "file://{victim}"}},
    ],
)
async def test_a_request_can_name_no_code_and_no_place(
    client: httpx.AsyncClient, settings: dict[str, object], tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    refused = await client.post("/run", content=json.dumps(settings).replace("{victim}", str(victim)))
    assert refused.status_code == 422, refused.text
    assert refused.json()["problems"]
    assert (await client.get("/run")).json()["status"] == "none"
    assert not victim.exists()

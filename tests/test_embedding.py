"""Training inside of a web service, with a real server and real requests over loopback."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import httpx
import pytest
import pytest_asyncio
import uvicorn

from orchestrator import Run, Trainer, find_resume_source
from scripts.examples.service import STREAM_SECONDS, main, make
from tests.orchestrator.training import worker_processes
from tests.paths import PROJECT

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.slow


@pytest_asyncio.fixture
async def client() -> AsyncGenerator[httpx.AsyncClient]:
    async with serving() as http:
        yield http


@asynccontextmanager
async def serving() -> AsyncGenerator[httpx.AsyncClient]:
    server = uvicorn.Server(
        uvicorn.Config(make(), port=0, log_level=logging.ERROR, lifespan="on", timeout_graceful_shutdown=STREAM_SECONDS)
    )
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    service = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
            yield http
    finally:
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
    assert (await client.get("/run")).json()["status"] in ("starting", "running")
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


async def wait_for(client: httpx.AsyncClient, name: str, *values: object) -> dict[str, object]:
    """The run as soon as it has one of these values."""
    with anyio.fail_after(100):
        while (state := (await client.get("/run")).json()).get(name) not in values:
            await asyncio.sleep(0.02)
    return state


@pytest.mark.asyncio
async def test_a_watcher_that_comes_again_is_told_what_it_has_missed(client: httpx.AsyncClient) -> None:
    await start(client, total_agent_steps=16 * 64 * 8)
    await wait_for(client, "status", "ended")
    async with client.stream("GET", "/run/events", headers={"Last-Event-ID": "2"}) as response:
        lines = [line async for line in response.aiter_lines() if line]
    points = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert [f"id: {point['epoch']}" for point in points] == [line for line in lines if line.startswith("id: ")]
    seen = [point["epoch"] for point in points]
    assert seen == sorted(set(seen))
    assert seen[0] > 2
    assert seen[-1] == (await client.get("/run")).json()["epoch"]
    assert points[-1].keys() == {"epoch", "agent_step", "return", "rate"}


@pytest.mark.asyncio
async def test_a_run_that_is_over_cannot_be_steered(client: httpx.AsyncClient) -> None:
    await start(client)
    await client.post("/run/stop")
    await wait_for(client, "status", "ended")
    with anyio.fail_after(100):
        while (answer := await client.post("/run/pause")).status_code != 409:
            await asyncio.sleep(0.02)
    assert "the run is over: ended" in answer.text
    assert (await start(client)).status_code == 201


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Until it is set, no run gets further than starting."""
    gate = asyncio.Event()

    class Waiting(Trainer):
        @asynccontextmanager
        async def start(self) -> AsyncGenerator[Run]:
            await gate.wait()
            async with super().start() as run:
                yield run

    monkeypatch.setattr("scripts.examples.service.Trainer", Waiting)
    return gate


@pytest.mark.asyncio
async def test_while_a_run_starts_the_service_says_so_and_takes_no_orders(
    gate: asyncio.Event, client: httpx.AsyncClient
) -> None:
    async with asyncio.TaskGroup() as tasks:
        starting = tasks.create_task(start(client))
        await wait_for(client, "status", "starting")
        for path in ("/run", "/run/stop", "/run/checkpoint"):
            assert (await client.post(path, content="{}")).status_code == 409
        gate.set()
    assert starting.result().status_code == 201
    assert (await client.get("/run")).json()["status"] in ("starting", "running")


@pytest.mark.asyncio
async def test_a_service_can_shut_down_while_a_run_starts(gate: asyncio.Event) -> None:
    async with serving() as client, asyncio.TaskGroup() as tasks:
        starting = tasks.create_task(start(client))
        await wait_for(client, "status", "starting")
        starting.cancel()


@pytest.mark.asyncio
@pytest.mark.parametrize("given", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic Zm9v"}])
async def test_without_its_token_a_service_tells_and_does_nothing(
    given: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "öffne")
    async with serving() as client:
        for method, path in (("GET", "/run"), ("GET", "/run/events"), ("POST", "/run"), ("POST", "/run/stop")):
            refused = await client.request(method, path, headers=given, content="{}")
            assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert "Bearer <TOKEN>" in refused.json()["problems"][0]
            disguised = await client.request(method, path, headers={**given, "Host": "x/?"}, content="{}")
            assert disguised.status_code == 401, "the page alone is free, whatever the Host makes of the URL"
        assert (await client.get("/")).status_code == 200, "the page asks for the token"
        allowed = await client.get("/run", headers={b"Authorization": "Bearer öffne".encode()})  # type: ignore[dict-item]
        assert allowed.json()["status"] == "none"


@pytest.mark.asyncio
async def test_the_page_of_another_site_can_start_nothing(client: httpx.AsyncClient) -> None:
    for origin in ("http://elsewhere.example", "null", "http://127.0.0.1:1"):
        refused = await client.post("/run", content="{}", headers={"Origin": origin})
        assert refused.status_code == 403
        assert origin in refused.text
    assert (await client.get("/run")).json()["status"] == "none"
    own = str(client.base_url).rstrip("/")
    assert (await client.post("/run/stop", headers={"Origin": own})).status_code == 404, "no run, but allowed"


@pytest.mark.asyncio
async def test_without_a_token_the_service_answers_to_no_name_that_others_give_it(client: httpx.AsyncClient) -> None:
    rebound = {"Host": "elsewhere.example", "Origin": "http://elsewhere.example"}
    refused = await client.post("/run", content="{}", headers=rebound)
    assert refused.status_code == 403
    assert "elsewhere.example" in refused.text
    assert (await client.get("/run", headers={"Host": "localhost:80"})).json()["status"] == "none"


@pytest.mark.asyncio
async def test_what_no_text_can_hold_is_refused_with_a_reason(client: httpx.AsyncClient) -> None:
    refused = await client.post("/run", content=b'{"\\ud800": 1}')
    assert refused.status_code == 422
    assert "\ud800" in refused.json()["problems"][0]


@pytest.mark.asyncio
async def test_which_environments_may_be_asked_for_is_the_services_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVIRONMENTS", "Acrobot-v1,Pendulum-v1")
    async with serving() as client:
        refused = await start(client, environment="CartPole-v1")
        assert refused.status_code == 422
        assert "none of Acrobot-v1, Pendulum-v1" in refused.text
        assert (await start(client)).json()["environment"] == "Acrobot-v1"


def test_a_service_for_other_machines_needs_a_token(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TOKEN", raising=False)
    with pytest.raises(SystemExit):
        main(["--host", "0.0.0.0"])
    assert "set TOKEN" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_service_that_is_told_to_end_saves_its_run_although_somebody_watches(
    number: signal.Signals, tmp_path: Path
) -> None:
    environment = os.environ | {"RUNS": str(tmp_path), "TOKEN": "secret"}
    command = [sys.executable, "-m", "scripts.examples.service", "--port", "0"]
    with subprocess.Popen(command, cwd=PROJECT, env=environment, stderr=subprocess.PIPE, text=True) as service:
        assert service.stderr is not None
        lines = iter(service.stderr.readline, "")
        address = next(found[1] for line in lines if (found := re.search(r"running on (http://\S+)", line)))
        bearer = {"Authorization": "Bearer secret"}
        with httpx.Client(base_url=address, timeout=100, headers=bearer) as client:
            settings = {"total_agent_steps": 10**9, "collection": {"num_environments": 16, "horizon": 64}}
            folder = Path(client.post("/run", json=settings).json()["folder"])
            with client.stream("GET", "/run/events") as response:
                epoch = next(int(line[4:]) for line in response.iter_lines() if line.startswith("id: "))
                service.send_signal(number)
                assert service.wait(100) in (0, -number)
    assert find_resume_source(folder).checkpoint.epoch >= epoch
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["epoch"] == (
        find_resume_source(folder).checkpoint.epoch
    )


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.mark.asyncio
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
async def test_on_its_page_a_run_is_started_watched_and_steered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    playwright = pytest.importorskip("playwright.async_api")
    monkeypatch.setenv("RUNS", str(tmp_path))
    monkeypatch.setenv("TOKEN", "secret")
    async with serving() as client, playwright.async_playwright() as started:
        browser = await started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = await browser.new_page()
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        await page.goto(str(client.base_url))
        expect, shown = playwright.expect, {"timeout": 60_000}
        await expect(page.locator("#problem")).to_contain_text("token", **shown)
        await page.fill("#token", "secret")
        await expect(page.locator("#status")).to_have_text("none", **shown)
        await page.fill("#settings", '{"environment": "Nowhere-v0"}')
        await page.click("text=Start")
        await expect(page.locator("#problem")).to_contain_text("none of Acrobot-v1", **shown)
        await page.fill("#settings", '{"environment": "CartPole-v1", "total_agent_steps": 1000000000}')
        await page.click("text=Start")
        await expect(page.locator("#status")).to_have_text("running", **shown)
        await expect(page.locator("#curve")).to_have_attribute("points", re.compile(r"\d,\d+.* 100,\d"), **shown)
        await expect(page.locator("#scale")).to_contain_text("agent steps per second", **shown)
        await page.click("text=Pause")
        await expect(page.locator("#status")).to_have_text("paused", **shown)
        await page.click("text=Resume")
        await expect(page.locator("#status")).to_have_text("running", **shown)
        await page.click("text=Checkpoint")
        await page.click("text=Stop")
        await expect(page.locator("#status")).to_have_text("ended", **shown)
        state = (await client.get("/run", headers={"Authorization": "Bearer secret"})).json()
        assert state["checkpoint"] is not None
        assert wrong == []
        await browser.close()

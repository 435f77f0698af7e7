"""Scraped over HTTP, and parsed by Prometheus's own parser."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.metrics import Prometheus, RunInfo
from orchestrator.metrics.prometheus import prometheus_name


@contextmanager
def serving(**options: Any) -> Iterator[Prometheus]:
    sink = Prometheus(**options)
    sink.open(RunInfo(run_id="a1"))
    try:
        yield sink
    finally:
        sink.close()


def scrape(sink: Prometheus) -> dict[tuple[str, str | None], float]:
    """The samples by name and hook."""
    text = httpx.get(f"http://127.0.0.1:{sink.port}/metrics", trust_env=False).raise_for_status().text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert all(sample.labels["run"] == "a1" for sample in samples)
    return {(sample.name, sample.labels.get("hook")): sample.value for sample in samples}


def test_the_newest_record_can_be_scraped() -> None:
    with serving() as sink:
        assert scrape(sink) == {}
        sink.write({"epoch": 1, "rollout/episode_return": 20.5})
        sink.write({"epoch": 2, "rollout/episode_return": None, "sps": 1e5})
        assert scrape(sink) == {("orchestrator_epoch", None): 2.0, ("orchestrator_sps", None): 1e5}


def test_metrics_of_hooks_have_the_hook_as_a_label() -> None:
    with serving() as sink:
        sink.write({"hook/metrics/lag": 1, "hook/my/own/lag": 2, "hook/metrics/failed": 0})
        assert scrape(sink) == {
            ("orchestrator_hook_lag", "metrics"): 1.0,
            ("orchestrator_hook_lag", "my/own"): 2.0,
            ("orchestrator_hook_failed", "metrics"): 0.0,
        }


def test_names_that_meet_in_one_do_not_spoil_the_page() -> None:
    with serving() as sink:
        sink.write({"loss/a/b": 1.0, "loss/a_b": 2.0, "eval/Zürich-v1": 3.0})
        assert scrape(sink) == {
            (prometheus_name("loss/a/b"), None): 1.0,
            ("orchestrator_eval_Z_rich_v1", None): 3.0,
        }


def test_a_free_port_is_said_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with serving(port=0) as sink:
        assert f"http://127.0.0.1:{sink.port}/metrics" in caplog.text
        assert caplog.records[-1].levelno == logging.WARNING


def test_a_port_that_is_taken_is_named_with_the_cure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=rf"127\.0\.0\.1:{port} .*metrics\.prometheus_port"), serving(port=port):
            pass


def test_after_the_end_the_port_is_free_again() -> None:
    with serving() as sink:
        port = sink.port
    with socket.create_server(("127.0.0.1", port or 0)):
        assert sink.port is None


def test_an_impossible_port_is_refused() -> None:
    with pytest.raises(ValueError, match="70000, expected 0"):
        Prometheus(port=70_000)

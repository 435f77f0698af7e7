"""Records in trackio, Hugging Face's local-first experiment tracker; needs the extra `trackio`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from orchestrator.metrics.sink import require
from orchestrator.replacing import replacing

if TYPE_CHECKING:
    from orchestrator.metrics.sink import Record, RunInfo


class Trackio:
    """Logs each epoch to a run of trackio's `project`, with the epoch as its step and the settings as its config.

    trackio keeps its files in a folder of the user's (`TRACKIO_DIR`), and `trackio show` draws them. A resumed run
    continues the same run of trackio, which keeps the records of epochs that are repeated. Other properties come from
    trackio's environment variables (`TRACKIO_SPACE_ID`, ...) or `options`, keyword arguments of `trackio.init`.

    Raises MissingExtra.
    """

    def __init__(self, *, project: str | None = None, **options: Any) -> None:
        require("trackio", "trackio")
        self.project = project or "orchestrator"
        self._options = options
        self._run: Any = None

    def open(self, run: RunInfo) -> None:
        trackio: Any = import_module("trackio")  # which most have not installed
        resumed = {"resume": "allow"} if run.epoch else {}
        options: dict[str, Any] = {
            "name": _name_in_trackio(run),
            "config": dict(run.settings),
            "embed": False,
            "auto_log_cpu": False,  # what the machine does is among the metrics
            "auto_log_gpu": False,
            **resumed,
            **self._options,
        }
        self._run = trackio.init(self.project, **options)

    def write(self, record: Record) -> None:
        known = {name: value for name, value in record.items() if value is not None}
        self._run.log(known, step=int(record["epoch"] or 0))

    def close(self) -> None:
        run, self._run = self._run, None
        run.finish()


def _name_in_trackio(run: RunInfo) -> str:
    """The folder's name with the id of the run that began there, which the folder keeps: trackio knows runs by name."""
    if run.run_dir is None:
        return run.run_id
    file = run.run_dir / "trackio-run.txt"
    if run.epoch and file.exists():
        return file.read_text(encoding="utf-8").strip()
    name = f"{run.run_dir.absolute().name}-{run.run_id}"
    with replacing(file) as working:
        working.write_text(f"{name}\n", encoding="utf-8")
    return name

"""A run's one run in Weights & Biases, which its metrics and its checkpoints go to; needs the extra `wandb`."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.config.paths import PATH
from orchestrator.metrics.sink import require
from orchestrator.replacing import replacing

if TYPE_CHECKING:
    from orchestrator.metrics.sink import Record, RunInfo


class Wandb:
    """Logs each epoch to a W&B run, with the epoch as W&B's step and the settings as the run's config.

    `project` is a project or entity/project. `mode` "offline" writes to the folder `wandb` in the run's folder, for
    `wandb sync`; "online" uploads; None is what WANDB_MODE says. The W&B run has the id of the run that its folder was
    made for, so that a resumed run continues it. A run that is stopped on W&B's page finishes its epoch and ends in
    order. Other properties come from W&B's environment variables (`WANDB_ENTITY`, `WANDB_NAME`, ...) or `options`,
    keyword arguments of `wandb.init`.

    This object owns the W&B run, for whoever else has something to put there: it begins when it is first `joined`, and
    ends when the last of those who `hold` it, or have opened it as a sink, leave. From any thread.

    Raises MissingExtra.
    """

    def __init__(
        self,
        *,
        project: str | None = None,
        mode: Literal["online", "offline"] | None = "online",
        joins_active: bool = False,
        **options: Any,
    ) -> None:
        require("wandb", "wandb")
        self.project = project
        self._mode: Literal["online", "offline"] | None = mode
        self._joins_active = joins_active
        """Whether a W&B run that the program has begun itself is taken, if there is one."""
        self._options = options
        self._lock = threading.Lock()
        self._holders: set[object] = set()
        self._of = ""
        """The id of the run whose W&B run is open."""
        self._owned = True
        self.run: Any = None
        """The `wandb.Run` while it is open."""

    # As a sink.

    def open(self, run: RunInfo) -> None:
        self.hold(self)
        try:
            self.joined(run)
        except BaseException:
            self.leave(self)
            raise

    def write(self, record: Record) -> None:
        self.run.log(
            {name: value for name, value in record.items() if value is not None}, step=int(record["epoch"] or 0)
        )

    def close(self) -> None:
        self.leave(self)

    # For others.

    def use_project(self, project: str) -> None:
        """Take the project that the run's checkpoints are to go to. Raises ValueError where another one is chosen."""
        common = project if self.project is None else common_project(self.project, project)
        if common is None:
            raise ValueError(
                f"metrics are to go to the W&B project {self.project!r}, checkpoints to {project!r}, but a run has one "
                f"W&B run: name the same project ({PATH.metrics.wandb_project}, {PATH.checkpoints.wandb_project}), or "
                "one of them only"
            )
        self.project = common

    def hold(self, holder: object) -> None:
        """Keep the W&B run open, once it is, until the same `holder` leaves."""
        with self._lock:
            self._holders.add(holder)

    def joined(self, run: RunInfo) -> Any:
        """The `wandb.Run`, which is begun if it is not open. Waits for W&B."""
        with self._lock:
            if self.run is None or self._of != run.run_id:
                self.run, self._of = self._begin(run), run.run_id
            return self.run

    def leave(self, holder: object) -> None:
        """Let go of it; the last to do so finishes the W&B run, which waits for what has to be uploaded."""
        with self._lock:
            self._holders.discard(holder)
            if self._holders or self.run is None:
                return
            run, self.run = self.run, None
            if self._owned:
                run.finish()

    def _begin(self, run: RunInfo) -> Any:
        import wandb

        self._owned = not (self._joins_active and wandb.run is not None)
        if not self._owned:
            return wandb.run
        id_file = None if run.run_dir is None else run.run_dir / "wandb" / "run-id.txt"
        run_id = run.run_id
        if id_file is not None:
            if run.epoch and id_file.exists():
                run_id = id_file.read_text().strip()
            with replacing(id_file) as working:
                working.write_text(f"{run_id}\n")
        # W&B reads the environment once in a process, which may have been long ago.
        mode = self._mode or os.environ.get("WANDB_MODE") or "online"
        resumes = run.epoch > 0 and mode == "online"  # an offline run is joined to the first when it is synced
        # Output belongs to the program, and what the machine does is among the metrics.
        settings = wandb.Settings(console="off", silent=True, x_disable_stats=True)
        # By itself W&B would interrupt the main thread, whoever's it is.
        settings.stop_fn = lambda: run.stop("asked for in Weights & Biases")
        options = dict(self._options)
        given = options.pop("settings", None)
        if given is not None:
            settings.update_from_settings(wandb.Settings(**given) if isinstance(given, dict) else given)
        entity, _, project = (self.project or "").rpartition("/")
        init: Any = wandb.init
        return init(
            **{
                "id": run_id,
                "project": project or None,
                "entity": entity or None,
                "dir": None if run.run_dir is None else str(run.run_dir),
                "mode": mode,
                "resume": "allow" if resumes else None,
                "reinit": "create_new",  # several runs may share a process
                "config": dict(run.settings),
                "settings": settings,
                **options,
            }
        )


def common_project(one: str, other: str) -> str | None:
    """The project that both name, with its entity if either says it; None if they name two."""
    (entity, _, project), (other_entity, _, other_project) = one.rpartition("/"), other.rpartition("/")
    if project != other_project or (entity and other_entity and entity != other_entity):
        return None
    return one if entity else other

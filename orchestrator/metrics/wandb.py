"""Records in Weights & Biases; needs the extra `wandb`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from orchestrator.metrics.sink import require

if TYPE_CHECKING:
    from orchestrator.metrics.sink import Record, RunInfo


class Wandb:
    """Logs each epoch to a W&B run, with the epoch as W&B's step and the settings as the run's config.

    `mode` "offline" writes to the folder `wandb` in the run's folder, for `wandb sync`; "online" uploads. The W&B run
    has the id of the run that its folder was made for, so that a resumed run goes on in it. A run that is stopped on
    W&B's page finishes its epoch and ends in order. Other properties come from W&B's environment variables
    (`WANDB_ENTITY`, `WANDB_NAME`, ...) or `options`, keyword arguments of `wandb.init`.

    Raises MissingExtra.
    """

    def __init__(
        self, *, project: str | None = None, mode: Literal["online", "offline"] = "online", **options: Any
    ) -> None:
        require("wandb", "wandb")
        self._mode: Literal["online", "offline"] = mode
        self._options = {"project": project, **options}
        self.run: Any = None
        """The `wandb.Run` while it is open."""

    def open(self, run: RunInfo) -> None:
        import wandb

        id_file = None if run.run_dir is None else run.run_dir / "wandb" / "run-id.txt"
        run_id = run.run_id
        if id_file is not None:
            id_file.parent.mkdir(parents=True, exist_ok=True)
            if run.epoch and id_file.exists():
                run_id = id_file.read_text().strip()
            id_file.write_text(f"{run_id}\n")
        resumes = run.epoch > 0 and self._mode == "online"  # an offline run is joined to the first when it is synced
        # Output belongs to the program, and what the machine does is among the metrics.
        settings: dict[str, Any] = {"console": "off", "silent": True, "x_disable_stats": True}
        if "stop_fn" in wandb.Settings.model_fields:  # older releases send SIGINT, which the command understands
            settings["stop_fn"] = lambda: run.stop("asked for in Weights & Biases")
        init: Any = wandb.init
        self.run = init(
            **{
                "id": run_id,
                "dir": None if run.run_dir is None else str(run.run_dir),
                "mode": self._mode,
                "resume": "allow" if resumes else None,
                "reinit": "create_new",  # several runs may go on in one process
                "config": dict(run.settings),
                "settings": wandb.Settings(**settings),
                **self._options,
            }
        )

    def write(self, record: Record) -> None:
        self.run.log(
            {name: value for name, value in record.items() if value is not None}, step=int(record["epoch"] or 0)
        )

    def close(self) -> None:
        run, self.run = self.run, None
        run.finish()

"""The console command: starts what takes longest before it imports anything large, then hands over to `cli`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.companions import hidden_in

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command with `arguments` (by default those of the process) and returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    problem = hidden_in(Path.cwd())
    if problem is not None:
        print(f"orchestrator: {problem}", file=sys.stderr)
        return 2
    here = str(Path.cwd())
    if here not in sys.path:  # code of one's own is named as package.module:function; it comes after installed code
        sys.path.append(here)
    if arguments[:1] == ["train"] and not {"-h", "--help"} & set(arguments):
        from orchestrator.command.checkpoint_signal import ignore_while_nothing_runs
        from orchestrator.workers.fork_server import warm_up

        ignore_while_nothing_runs()
        warm_up()
    from orchestrator.command.cli import run
    from orchestrator.hooks.included.terminal import let_go_of_lost_streams, output_that_may_be_lost

    try:
        with output_that_may_be_lost():
            return run(arguments)
    finally:
        let_go_of_lost_streams()


if __name__ == "__main__":
    sys.exit(main())

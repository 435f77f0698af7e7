"""Seconds from the command `orchestrator train` to the beginning of its first epoch, with a warm file cache.

    python scripts/bench/startup.py [--repeats 5]

The clock of a run starts when its workers are ready and the first epoch begins (a millisecond later, when the learner
has published its first policy). Each line of metrics.jsonl has its reading, and the file's time says when the last line
was written.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from measure import arguments, describe_machine, spread, verdict

GOAL = 6.0
STEPS = 64 * 128


def seconds_to_first_epoch() -> tuple[float, float]:
    """Until the first epoch begins, and until the command has ended."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        options = [f"--total-agent-steps={STEPS}", f"--run-dir={run_dir}"]
        command = [sys.executable, "-m", "orchestrator", "train", *options]
        began = time.time()
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        ended = time.time()
        if result.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr}")
        metrics = run_dir / "metrics.jsonl"
        last = json.loads(metrics.read_text(encoding="utf-8").splitlines()[-1])
        epoch_began = metrics.stat().st_mtime - last["time/seconds"]
    return epoch_began - began, ended - began


def main() -> None:
    chosen = arguments(__doc__, repeats=5).parse_args()
    print(describe_machine())
    seconds_to_first_epoch()  # what is read from now on is in the file cache
    rounds = [seconds_to_first_epoch() for _ in range(chosen.repeats)]
    first = [one[0] for one in rounds]
    print(f"command to first epoch  {spread(first)} s  ({verdict(statistics.median(first), GOAL)})")
    print(f"command to its end, after an epoch or two  {spread([one[1] for one in rounds])} s")


if __name__ == "__main__":
    main()

"""The report as one HTML page, which needs no network and no other file."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING

from orchestrator.config.paths import PATH
from orchestrator.replacing import replacing
from orchestrator.report.charts import Axis, Piece, Row, Series, area_chart, line_chart, share_bar, time_axis, time_line
from orchestrator.report.formats import UNKNOWN, duration, epochs, share, whole
from orchestrator.report.summary import ACTIVITIES, CRITICAL, hook_summaries, rows, unique_names

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from orchestrator.report.run_record import RunRecord
    from orchestrator.report.trace_file import Slice

RUN_COLORS = 8
"""Colors for runs in the style sheet; more runs begin again with the first."""
SHOWN_EPOCHS = 4
"""Epochs on the time line: so few that single minibatches can be seen."""
_MOST_PIECES = 600
_STEPS = Axis("agent steps")
_ACTIVITY_NAMES = {"": "at work", "wait_": "waits for the other", "hooks_": "hooks", "host_": "host"}
_CRITICAL_NAMES = {"learn": "learning", "collect": "collecting", "hooks": "hooks", "host": "host"}


def write_page(runs: Sequence[RunRecord], path: Path) -> None:
    """Writes the page, in one step: what was there is either still there or replaced."""
    with replacing(path) as working:
        working.write_text(page(runs), encoding="utf-8")


def page(runs: Sequence[RunRecord]) -> str:
    """The page's text, for one run or several to compare."""
    names = unique_names(runs)
    colors = [f"--run-{index % RUN_COLORS}" for index in range(len(runs))]
    title = f"Training report: {', '.join(names)}"
    here = files("orchestrator.report")
    style, script = (here.joinpath(name).read_text(encoding="utf-8") for name in ("report.css", "hover.js"))
    listed = list(zip(names, colors, runs, strict=True))
    body = "".join(
        (
            f"<header><h1>Training report</h1>{_run_list(listed)}</header>",
            _section("Summary", _summary(listed)),
            _section("Learning", f'<div class="grid">{_learning(listed)}</div>{_losses(listed)}'),
            _section("Pace", f'<div class="grid">{_pace(listed)}</div>'),
            *(_section(f"Where the time goes: {name}", _time(name, run)) for name, _, run in listed),
        )
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n"
        f"<body><main>{body}</main><script>{script}</script></body></html>\n"
    )


_Listed = tuple[str, str, "RunRecord"]


def _section(heading: str, content: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>{content}</section>" if content else ""


def _run_list(listed: Sequence[_Listed]) -> str:
    items = "".join(
        f'<li><i style="background:var({color})"></i><strong>{escape(name)}</strong> '
        f"<span>{escape(str(run.settings.get('environment', '')))}</span></li>"
        for name, color, run in listed
    )
    return f'<ul class="legend runs">{items}</ul>'


def _summary(listed: Sequence[_Listed]) -> str:
    columns = [rows(run) for _, _, run in listed]
    head = "".join(
        f'<th scope="col"><i style="background:var({color})"></i>{escape(name)}</th>' for name, color, _ in listed
    )
    lines: list[str] = []
    for place, (label, _) in enumerate(columns[0]):
        values = [column[place][1] for column in columns]
        if any(value != UNKNOWN for value in values):
            cells = "".join(f"<td>{escape(value)}</td>" for value in values)
            lines.append(f'<tr><th scope="row">{escape(label)}</th>{cells}</tr>')
    return (
        f'<div class="scroll"><table class="summary"><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _returns(listed: Sequence[_Listed], x: str) -> list[Series]:
    smooth = [Series(name, color, run.points(x, "rollout/recent_return")) for name, color, run in listed]
    raw = [Series(name, color, run.points(x, "rollout/episode_return"), faint=True) for name, color, run in listed]
    return [*raw, *smooth]


def _longest(listed: Sequence[_Listed]) -> float:
    return max(run.last("time/seconds") or 0.0 for _, _, run in listed)


def _learning(listed: Sequence[_Listed]) -> str:
    time = time_axis("training time", _longest(listed), from_zero=True)
    evaluations = [Series(name, color, run.evaluations(), dots=True) for name, color, run in listed]
    note = "faint: mean of an epoch's episodes"
    label = Axis("mean of the last 100 episodes")
    return "".join(
        (
            line_chart("Episode return by agent steps", _STEPS, label, _returns(listed, "agent_step"), note),
            line_chart("Episode return by time", time, label, _returns(listed, "time/seconds"), note),
            line_chart("Evaluation", Axis("agent steps of the policy"), Axis("score"), evaluations),
        )
    )


def _losses(listed: Sequence[_Listed]) -> str:
    names = dict.fromkeys(name for _, _, run in listed for name in run.names if name.startswith("loss/"))
    charts = [
        line_chart(
            metric.removeprefix("loss/"),
            _STEPS,
            Axis("mean of the epoch"),
            [Series(name, color, run.points("agent_step", metric)) for name, color, run in listed],
        )
        for metric in names
    ]
    charts = [chart for chart in charts if chart]
    if not charts:
        return ""
    return (
        f"<details><summary>Losses and statistics of learning ({len(charts)})</summary>"
        f'<div class="grid small">{"".join(charts)}</div></details>'
    )


def _pace(listed: Sequence[_Listed]) -> str:
    time = time_axis("training time", _longest(listed), from_zero=True)
    lags = [Series(name, color, run.points("agent_step", "time/policy_lag")) for name, color, run in listed]
    longest_lag = max((lag for one in lags for _, lag in one.points), default=0.0)
    return "".join(
        (
            line_chart(
                "Throughput",
                time,
                Axis("agent steps per second", from_zero=True),
                [Series(name, color, run.points("time/seconds", "sps")) for name, color, run in listed],
            ),
            line_chart(
                "Age of the policy when collecting begins",
                _STEPS,
                time_axis("time from publication to use", longest_lag, from_zero=True),
                lags,
            ),
        )
    )


# Where one run's time went.


def _time(name: str, run: RunRecord) -> str:
    parts = [_epoch_chart(run), _shares(run), _trace(run), _hooks(run)]
    return "".join(part for part in parts if part)


def _epoch_chart(run: RunRecord) -> str:
    known = [record for record in run.epochs if record.get("time/critical_learn") is not None]
    if not known:
        return ""
    bands = [
        (_CRITICAL_NAMES[part], f"--{part}", [record.get(f"time/critical_{part}") or 0.0 for record in known])
        for part in CRITICAL
    ]
    longest = max(record.get("time/epoch") or 0.0 for record in known)
    axis = time_axis("time per epoch", longest, from_zero=True)
    numbers = [record["epoch"] or 0.0 for record in known]
    return area_chart("Critical path of the epochs", Axis("epoch"), axis, numbers, bands)


def _shares(run: RunRecord) -> str:
    critical = [(_CRITICAL_NAMES[part], f"--{part}", run.total(f"time/critical_{part}") or 0.0) for part in CRITICAL]
    bars = share_bar("Critical path", critical, duration)
    for task, label in (("collect", "Collectors"), ("learn", "Learner")):
        colors = (f"--{task}", "--wait", "--hooks", "--host")
        parts = [
            (_ACTIVITY_NAMES[prefix], color, run.total(f"time/{prefix}{task}") or 0.0)
            for prefix, color in zip(ACTIVITIES, colors, strict=True)
        ]
        if run.total(f"time/wait_{task}") is not None:
            bars += share_bar(label, parts, duration)
    return f'<div class="shares">{bars}</div>' if bars else ""


def _trace(run: RunRecord) -> str:
    heading = "<h3>What happens in an epoch</h3>"
    trace = run.trace
    recorded = [] if trace is None else trace.of("epoch")
    if trace is None or not recorded:
        return (
            f'<figure class="trace">{heading}<p class="hint">Not recorded. A run with '
            f"<code>--{PATH.metrics.trace}</code> records what every process does when.</p></figure>"
        )
    chosen = _typical(recorded)
    began, ended = chosen[0].began, chosen[-1].ended
    inside = [one for one in trace.slices if one.ended >= began and one.began <= ended]
    legend = [("collecting", "--collect"), ("learning", "--learn"), ("publication", "--publish")]
    if any(one.category in ("hook", "worker") for one in inside):
        legend.append(("hook", "--hooks"))
    if any(one.category == "block" for one in inside):
        legend.append(("the training waits", "--wait"))
    first, last = chosen[0].arguments.get("epoch"), chosen[-1].arguments.get("epoch")
    rest = escape(f"epochs {first} to {last}; the rest is in {run.trace_path.name if run.trace_path else ''}")
    lines = time_line(_tracks(inside), began, ended, legend, [one.ended for one in chosen[:-1]])
    return f'<figure class="trace">{heading}<p class="hint">{rest}</p>{lines}</figure>'


def _typical(epochs: Sequence[Slice]) -> Sequence[Slice]:
    """Neighboring epochs from the middle of the run, with a median total duration: not those that were disturbed."""
    count = min(SHOWN_EPOCHS, len(epochs))
    windows = [
        epochs[start : start + count]
        for start in range(len(epochs) - count + 1)
        if epochs[start + count - 1].arguments.get("epoch", 0) - epochs[start].arguments.get("epoch", 0) == count - 1
    ]
    if not windows:
        return epochs[-1:]
    middle = windows[len(windows) // 4 : max(len(windows) // 4 + 1, 3 * len(windows) // 4)]
    return sorted(middle, key=lambda window: window[-1].ended - window[0].began)[len(middle) // 2]


_TRACK_ORDER = ("collector", "publications", "learner")
_COLORS = {
    "collect": "--collect",
    "learn": "--learn",
    "update epoch": "--inner",
    "minibatch": "--inner",
    "publish": "--publish",
    "hook": "--hooks",
    "worker": "--hooks",
    "block": "--wait",
}


def _tracks(slices: Sequence[Slice]) -> list[Row]:
    pieces: dict[str, list[Piece]] = {}
    for one in slices:
        color = _COLORS.get(one.category)
        # The epochs are drawn as marks and the tasks are what the workers show; update epochs are seen by minibatches.
        if (
            color is None
            or one.category == "update epoch"
            or (one.track.startswith("learner") and one.category == "publish")
        ):
            continue
        level = int(one.category == "minibatch")
        name = f"hook {one.track}" if one.group == "hooks" else one.track
        row = pieces.setdefault(name, [])
        if len(row) < _MOST_PIECES:
            row.append(Piece(one.name, color, one.began, one.ended, level))

    def order(name: str) -> tuple[int, str]:
        place = next((place for place, start in enumerate(_TRACK_ORDER) if name.startswith(start)), 3)
        return (place if not name.startswith("hook ") else 4, name)

    return [Row(name, pieces[name]) for name in sorted(pieces, key=order)]


def _hooks(run: RunRecord) -> str:
    hooks = hook_summaries(run)
    if not hooks:
        return ""
    headings = ("hook", "handled", "failed", "skipped", "at work", "hidden", "exposed", "share hidden", "most behind")
    head = "".join(f'<th scope="col">{heading}</th>' for heading in headings)
    lines = "".join(
        f'<tr><th scope="row">{escape(hook.name)}</th><td>{whole(hook.handled)}</td><td>{whole(hook.failed)}</td>'
        f"<td>{whole(hook.skipped)}</td><td>{duration(hook.busy)}</td><td>{duration(hook.hidden)}</td>"
        f"<td>{duration(hook.exposed)}</td><td>{_meter(hook.hidden, hook.busy)}</td>"
        f"<td>{epochs(hook.lag)}</td></tr>"
        for hook in hooks
    )
    return (
        "<h3>Hooks</h3><p class='hint'>Hidden: the training continued. Exposed: the training waited for it.</p>"
        f'<div class="scroll"><table class="hooks"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'
    )


def _meter(part: float, total: float) -> str:
    percent = 100 * part / total if total else 100.0
    return f'<span class="meter" title="{share(part, total)} hidden"><b style="width:{percent:.1f}%"></b></span>'

"""Records as TensorBoard scalars; needs the extra `tensorboard`."""

from __future__ import annotations

import os
import struct
import subprocess
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.metrics.sink import require

if TYPE_CHECKING:
    from collections.abc import Mapping
    from io import BufferedWriter

    from orchestrator.metrics.sink import Record, RunInfo

GIF_FRAMES = 15
"""Frames per second of videos."""
_COUNTERS = ("epoch", "agent_step")


class TensorBoard:
    """Writes one event per epoch, with a scalar for each metric, over the axis `axis` ("agent_step" or "epoch").

    The event file is in `folder`, by default `tensorboard` in the run's folder, and each event is in it at once.
    Of a resumed run TensorBoard shows the earlier records up to the epoch at which it resumes.

    Raises MissingExtra, ValueError for another axis.
    """

    def __init__(self, folder: Path | None = None, *, axis: str = "agent_step") -> None:
        require("tensorboard", "tensorboard")
        require("google_crc32c", "tensorboard")
        if axis not in _COUNTERS:
            raise ValueError(f"the axis is {axis!r}, expected one of {', '.join(_COUNTERS)}")
        self._folder = folder
        self._axis = axis
        self._file: BufferedWriter
        self._events: Any
        self._summaries: Any
        self._summary: Any = None
        self._names: tuple[str, ...] = ()
        self._resumed = False

    def open(self, run: RunInfo) -> None:
        """Raises ValueError where neither a folder nor the run's is known."""
        folder = self._folder or (None if run.run_dir is None else run.run_dir / "tensorboard")
        if folder is None:
            raise ValueError("the run has no folder: give TensorBoard one")
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard looks for this name; time and process make it the newest and unique.
        name = f"events.out.tfevents.{time.time():017.6f}.{run.run_id}.{os.getpid()}"
        self._file = Path.open(folder / name, "ab")
        self._events = import_module("tensorboard.compat.proto.event_pb2")  # generated, and without types
        self._summaries = import_module("tensorboard.compat.proto.summary_pb2")
        self._resumed = run.epoch > 0
        self._add(file_version="brain.Event:2")

    def write(self, record: Record) -> None:
        step = int(record.get(self._axis) or 0)
        if self._resumed:  # tells readers that what they know from this step on is made again
            self._add(step=step, session_log=self._events.SessionLog(status=self._events.SessionLog.START))
            self._resumed = False
        known = {name: number for name, number in record.items() if number is not None}
        names = tuple(known)
        if names != self._names:
            value = self._summaries.Summary.Value
            self._summary = self._summaries.Summary(value=[value(tag=name) for name in names])
            self._names = names
        # Most epochs have the same names, and setting numbers takes a quarter of making a summary.
        for value, number in zip(self._summary.value, known.values(), strict=True):
            value.simple_value = number
        self._add(step=step, summary=self._summary)

    def write_videos(self, record: Record, videos: Mapping[str, str]) -> None:
        """As moving images; needs the extra `video`, which made them."""
        image, value = self._summaries.Summary.Image, self._summaries.Summary.Value
        values: list[Any] = []
        for task, path in videos.items():
            width, height, content = _as_gif(path)
            picture = image(width=width, height=height, colorspace=3, encoded_image_string=content)
            values.append(value(tag=f"video/{task}", image=picture))
        self._add(step=int(record.get(self._axis) or 0), summary=self._summaries.Summary(value=values))

    def close(self) -> None:
        self._file.close()

    def _add(self, **content: Any) -> None:
        # TensorBoard's own writer computes the checksums in Python, which takes longer than everything else here.
        data: bytes = self._events.Event(wall_time=time.time(), **content).SerializeToString()
        length = struct.pack("<Q", len(data))
        self._file.write(length + _checksum(length) + data + _checksum(data))
        self._file.flush()


def _as_gif(path: str) -> tuple[int, int, bytes]:
    """Width, height and content: browsers play this as an image, which is all that TensorBoard knows."""
    ffmpeg: Any = import_module("imageio_ffmpeg")
    command = [ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", path, "-vf", f"fps={GIF_FRAMES}", "-f", "gif", "-"]
    content = subprocess.run(command, capture_output=True, check=True).stdout
    width, height = struct.unpack_from("<HH", content, 6)
    return width, height, content


def _checksum(data: bytes) -> bytes:
    """The masked CRC-32C of the TFRecord format."""
    import google_crc32c

    crc: int = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

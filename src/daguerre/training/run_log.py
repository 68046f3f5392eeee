"""The log of a training run: JSON lines, TensorBoard events, sample images, and a progress line with speed, remaining time and losses."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
from PIL import Image
from rich.progress import TextColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from daguerre.atomic_io import atomic_write
from daguerre.errors import DaguerreError
from daguerre.progress import progress

MAX_WAITING = 0.1  # share of the time: more is said
T = TypeVar("T")


class Means:
    """Running means of named values, each over the times that it was added."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor | float] = {}
        self._weights: dict[str, float] = {}

    def add(self, values: Mapping[str, Tensor | float], weight: float = 1) -> None:
        """Add values; tensors stay on their device until `take`, so that a GPU is not waited for."""
        for name, value in values.items():
            number = value.detach() if isinstance(value, Tensor) else value
            self._sums[name] = self._sums.get(name, 0.0) + weight * number
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def take(self) -> dict[str, float]:
        """The means, by name, and start again."""
        means = {name: float(total) / self._weights[name] for name, total in self._sums.items()}
        self._sums.clear()
        self._weights.clear()
        return means


class RunLog:
    """Writes `log.jsonl`, `tensorboard/` and `samples/` in `folder`. A context manager; only the main process writes.

    Entries of an earlier part of the run after step `start` are dropped, because these steps run again; `seconds` continues.
    Raises DaguerreError if the disk is full.
    """

    def __init__(self, folder: Path, task: str, start: int, total: int, is_main: bool = True):
        self.folder, self.task, self.total, self.is_main = folder, task, total, is_main
        self._started, self._start, self._seconds_before = time.monotonic(), start, 0.0
        self._logged, self._waited, self._advised = (self._started, start), 0.0, False  # the time and step of the last line
        self._progress = progress(TextColumn("{task.fields[losses]}"), transient=False, shown=is_main)
        self._bar = self._progress.add_task(task, total=total, completed=start, losses="")

    def __enter__(self) -> "RunLog":
        if self.is_main:
            with self._disk_errors():
                self._seconds_before = _truncate_log(self.folder / "log.jsonl", self._start)
                self._tensorboard = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self._start + 1)
                self._lines = (self.folder / "log.jsonl").open("a", buffering=1)
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.is_main:
            self._progress.stop()
            # An error that is already being raised is more useful than one from closing the files.
            with suppress(OSError) if error else self._disk_errors():
                self._lines.close()
                self._tensorboard.close()

    def watch(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches; measures how long the model waits for them. The first one, before which nothing could be loaded, does not
        count."""
        yield next(batches)
        while True:
            asked = time.monotonic()
            batch = next(batches)
            self._waited += time.monotonic() - asked
            yield batch

    def losses(self, step: int, images: int, values: Mapping[str, float]) -> None:
        """Log the losses after `step` steps; `images` is the number of images per step."""
        if not self.is_main:
            return
        elapsed = time.monotonic() - self._started
        speed = (step - self._start) / elapsed
        record = {"step": step, "seconds": round(self._seconds_before + elapsed, 2), "images_per_second": round(speed * images, 2)}
        record["waiting_for_data"] = round(self._waiting(step, images), 3)
        with self._disk_errors():
            self._lines.write(json.dumps(record | {name: float(f"{value:.6g}") for name, value in values.items()}) + "\n")
            for name, value in values.items():
                self._tensorboard.add_scalar(f"{self.task}/{name}", value, step)
            self._tensorboard.flush()
        text = " ".join(f"{name} {value:.4g}" for name, value in values.items())
        if record["waiting_for_data"] > MAX_WAITING:
            text += f" waiting for data {record['waiting_for_data']:.0%}"
        self._progress.update(self._bar, completed=step, losses=text)
        if self._progress.disable:
            left = time.strftime("%H:%M:%S", time.gmtime((self.total - step) / max(speed, 1e-9)))
            self.info(f"{self.task} {step}/{self.total}  {speed:.2f} steps/s  {left} left  {text}")

    def _waiting(self, step: int, images: int) -> float:
        """The share of the time since the last line that the model waited for batches; says once what that costs if it is large."""
        (before, first), waited, now = self._logged, self._waited, time.monotonic()
        self._logged, self._waited = (now, step), 0.0
        share, count, passed = waited / max(now - before, 1e-9), (step - first) * images, now - before
        if share > MAX_WAITING and not self._advised:
            self._advised = True
            self.info(
                f"{self.task}: the model waits for data {share:.0%} of the time. Loading gives {count / passed:.3g} images per second; "
                f"the steps alone take {count / max(passed - waited, 1e-9):.3g}. Use more --workers, or shards on a faster disk."
            )
        return share

    def image(self, step: int, image: Image.Image) -> None:
        """Save a sample grid as `samples/000400.png` and in TensorBoard."""
        if not self.is_main:
            return
        with atomic_write(self.folder / "samples" / f"{step:06d}.png") as file:
            image.save(file, "PNG")
        with self._disk_errors():
            self._tensorboard.add_image(f"{self.task}/samples", np.asarray(image.convert("RGB")), step, dataformats="HWC")
            self._tensorboard.flush()

    def info(self, sentence: str) -> None:
        """Print one line."""
        if self.is_main:
            self._progress.console.print(sentence, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DaguerreError(
                f"Cannot write the log in '{self.folder}': {error.strerror or error}. The last checkpoint is kept; free some space and run "
                "the same command again to resume."
            ) from error


def _truncate_log(path: Path, start: int) -> float:
    """Drop the lines of a log after step `start`, and incomplete lines; return the seconds of training that the others record."""
    if not path.is_file():
        return 0.0
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if _number(line, "step", math.inf) <= start]
    with atomic_write(path) as file:
        file.writelines(f"{line}\n".encode() for line in kept)
    return max((_number(line, "seconds", 0.0) for line in kept), default=0.0)


def _number(line: str, name: str, otherwise: float) -> float:
    try:
        return float(json.loads(line)[name])
    except (ValueError, KeyError, TypeError):
        return otherwise

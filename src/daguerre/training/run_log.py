"""What a run tells: one JSON line and one tensorboard point per logged step, and a progress line with speed, remaining time and loss."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from PIL import Image
from rich.progress import TextColumn

from daguerre.atomic_io import atomic_write
from daguerre.errors import DaguerreError
from daguerre.progress import progress
from daguerre.training.curves import Curves


class RunLog:
    """Writes `log.jsonl`, `curves/` (tensorboard) and `samples/` under `folder`. A context manager; only the first process speaks.

    What an earlier part of the run logged after step `start` is forgotten, for it is trained again. Raises DaguerreError where the disk is
    full.
    """

    def __init__(self, folder: Path, stage: str, start: int, total: int, is_main: bool = True):
        self.folder, self.stage, self.total, self.speaks = folder, stage, total, is_main
        self._started, self._start = time.monotonic(), start
        self._progress = progress(TextColumn("{task.fields[losses]}"), transient=False, shown=is_main)
        self._task = self._progress.add_task(stage, total=total, completed=start, losses="")

    def __enter__(self) -> "RunLog":
        if self.speaks:
            with self._writing():
                _forget(self.folder / "log.jsonl", self._start)
                self._curves = Curves(self.folder / "curves", self._start)
                self._lines = (self.folder / "log.jsonl").open("a", buffering=1)
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.speaks:
            self._progress.stop()
            # An error that is under way is the one to tell.
            with suppress(OSError) if error else self._writing():
                self._lines.close()
                self._curves.close()

    def losses(self, step: int, pictures: int, values: Mapping[str, float]) -> None:
        """Log the losses after `step` steps; `pictures` is the number seen in one step."""
        if not self.speaks:
            return
        elapsed = time.monotonic() - self._started
        speed = (step - self._start) / elapsed
        record = {"step": step, "seconds": round(elapsed, 2), "pictures_per_second": round(speed * pictures, 2)}
        with self._writing():
            self._lines.write(json.dumps(record | {k: round(v, 6) for k, v in values.items()}) + "\n")
            self._curves.values(step, {f"{self.stage}/{name}": value for name, value in values.items()})
        text = " ".join(f"{name} {value:.4g}" for name, value in values.items())
        self._progress.update(self._task, completed=step, losses=text)
        if self._progress.disable:
            left = time.strftime("%H:%M:%S", time.gmtime((self.total - step) / max(speed, 1e-9)))
            self.info(f"{self.stage} {step}/{self.total}  {speed:.2f} steps/s  {left} left  {text}")

    def image(self, step: int, picture: Image.Image) -> None:
        """Keep a sample grid as `samples/000400.png`, and in tensorboard."""
        if not self.speaks:
            return
        with atomic_write(self.folder / "samples" / f"{step:06d}.png") as file:
            picture.save(file, "PNG")
        with self._writing():
            self._curves.picture(step, f"{self.stage}/samples", picture)

    def info(self, sentence: str) -> None:
        """One line for the person who watches."""
        if self.speaks:
            self._progress.console.print(sentence, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DaguerreError(
                f"Cannot write the log in '{self.folder}': {error.strerror or error}. The last checkpoint is kept; free some space and run "
                "the same command again to go on from there."
            ) from error


def _forget(path: Path, start: int) -> None:
    """Drop the lines of a log that are later than step `start`, or half written."""
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
        with atomic_write(path) as file:
            file.writelines(f"{line}\n".encode() for line in lines if _step(line) <= start)


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")

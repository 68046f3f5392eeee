"""What a run tells: one JSON line and one tensorboard point per logged step, and a progress line with speed, remaining time and loss."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class RunLog:
    """Writes `log.jsonl`, `curves/` (tensorboard) and `samples/` under `folder`. A context manager; only the first process speaks."""

    def __init__(self, folder: Path, stage: str, start: int, total: int, speaks: bool = True):
        self.folder, self.stage, self.total, self.speaks = folder, stage, total, speaks
        self._started, self._start = time.monotonic(), start
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}"),
            console=self._console,
            disable=not (speaks and sys.stderr.isatty()),
        )
        self._task = self._progress.add_task(stage, total=total, completed=start, speed="", losses="")

    def __enter__(self) -> "RunLog":
        if self.speaks:
            from torch.utils.tensorboard.writer import SummaryWriter

            self.folder.mkdir(parents=True, exist_ok=True)
            self._curves = SummaryWriter(str(self.folder / "curves"))
            self._lines = (self.folder / "log.jsonl").open("a", buffering=1)
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.speaks:
            self._progress.stop()
            self._curves.close()
            self._lines.close()

    def losses(self, step: int, pictures: int, values: Mapping[str, float]) -> None:
        """Log the losses after `step` steps; `pictures` is the number seen in one step."""
        if not self.speaks:
            return
        elapsed = time.monotonic() - self._started
        speed = (step - self._start) / elapsed
        remaining = (self.total - step) / max(speed, 1e-9)
        record = {"step": step, "seconds": round(elapsed, 2), "pictures_per_second": round(speed * pictures, 2)}
        self._lines.write(json.dumps(record | {k: round(v, 6) for k, v in values.items()}) + "\n")
        for name, value in values.items():
            self._curves.add_scalar(f"{self.stage}/{name}", value, step)
        text = " ".join(f"{name} {value:.4g}" for name, value in values.items())
        self._progress.update(self._task, completed=step, speed=f"{speed:.2f} steps/s", losses=text)
        if self._progress.disable:
            left = time.strftime("%H:%M:%S", time.gmtime(remaining))
            print(f"{self.stage} {step}/{self.total}  {speed:.2f} steps/s  {left} left  {text}", file=sys.stderr, flush=True)

    def picture(self, step: int, picture: Image.Image) -> None:
        """Keep a sample grid as `samples/000400.png`, and in tensorboard."""
        if not self.speaks:
            return
        folder = self.folder / "samples"
        folder.mkdir(exist_ok=True)
        picture.save(folder / f"{step:06d}.png")
        import numpy as np

        self._curves.add_image(f"{self.stage}/samples", np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def say(self, sentence: str) -> None:
        """One line for the person who watches."""
        if self.speaks:
            self._console.print(sentence, highlight=False)

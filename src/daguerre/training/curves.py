"""Curves and pictures for tensorboard, written at once, so that a full disk is told where it happens and not by a thread.

A file of events is a row of records, each an `Event` of the protocol buffer with its length and checksums
(https://github.com/tensorflow/tensorboard, `tensorboard/compat/proto/event.proto`).
"""

import io
import time
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]  (made by protoc at import)
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.record_writer import RecordWriter

FORMAT = "brain.Event:2"
RGB = 3  # the protocol's word for it


class Curves:
    """One file of events in `folder`, whose name puts it behind those before.

    Of what earlier files hold after step `start`, tensorboard shows nothing. Raises OSError.
    """

    def __init__(self, folder: Path, start: int):
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / f"events.out.tfevents.{time.time():.6f}.{uuid4().hex[:8]}").open("wb")
        self._records = RecordWriter(self._file)
        self._write(file_version=FORMAT)
        self._write(step=start + 1, session_log=SessionLog(status=SessionLog.START))

    def values(self, step: int, values: Mapping[str, float]) -> None:
        """One point on each curve."""
        self._write(step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]))

    def picture(self, step: int, tag: str, picture: Image.Image) -> None:
        """One picture."""
        encoded = io.BytesIO()
        picture.convert("RGB").save(encoded, "PNG")
        image = Summary.Image(height=picture.height, width=picture.width, colorspace=RGB, encoded_image_string=encoded.getvalue())
        self._write(step=step, summary=Summary(value=[Summary.Value(tag=tag, image=image)]))

    def close(self) -> None:
        """End the file."""
        self._file.close()

    def _write(self, **what: object) -> None:
        self._records.write(Event(wall_time=time.time(), **what).SerializeToString())
        self._file.flush()

"""What a request stores about an adapter: enough to find its file again and attach it the same way. Imports no torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Any, Literal, get_args

from daguerre.errors import DaguerreError

AdapterKind = Literal["lora", "embedding", "controlnet", "t2i-adapter", "ip-adapter"]
MAPPED_KINDS: tuple[AdapterKind, ...] = ("controlnet", "t2i-adapter")  # those that take a condition map
MAX_SCALE = 100.0


@dataclass(frozen=True)
class AdapterRecord:
    """An adapter of a request.

    Attributes:
        kind: what it is.
        name: as prompts and other programs name it; of an embedding, the word.
        path: its file or folder; None for one that was made in memory.
        sha256: of its file or files; None for one that was made in memory.
        short_hash: the 12 digits that web UIs show for a LoRA; None for the others.
        scale: strength, 1 is as trained; of a LoRA for the UNet.
        text_scale: of a LoRA for the text encoders; None is `scale`.
        rank: of a LoRA, use only so many of its ranks; None is all.
        start, end: of a ControlNet or another adapter with an image, the shares of the steps between which it applies.
        guess_mode: of a ControlNet, apply it to the prompt's condition only and less in the upper layers.
        images: of an IP-Adapter, how many images of the request it takes.
        encoder: of an IP-Adapter, the folder or file of its image encoder; None is the one next to its file.
    """

    kind: AdapterKind
    name: str
    path: str | None = None
    sha256: str | None = None
    short_hash: str | None = None
    scale: float = 1.0
    text_scale: float | None = None
    rank: int | None = None
    start: float = 0.0
    end: float = 1.0
    guess_mode: bool = False
    images: int = 1
    encoder: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(AdapterKind):
            raise DaguerreError(f"There is no adapter of the kind {self.kind!r}; the kinds are {', '.join(get_args(AdapterKind))}.")
        texts = self.path, self.sha256, self.short_hash, self.encoder
        if not isinstance(self.name, str) or not all(text is None or isinstance(text, str) for text in texts):
            raise DaguerreError(f"The name, path and hashes of an adapter are texts; got {self.name!r}, {self.path!r}.")
        check_scale(self.name, self.scale)
        if self.text_scale is not None:
            check_scale(self.name, self.text_scale)
        if self.rank is not None and (not isinstance(self.rank, int) or self.rank < 1):
            raise DaguerreError(f"The rank of {self.name!r} is {self.rank!r}; it is 1 or more, or None for all ranks.")
        if not isinstance(self.images, int) or self.images < 1:
            raise DaguerreError(f"{self.name!r} takes {self.images!r} images; give 1 or more.")
        check_interval(self.name, self.start, self.end)
        for name in ("scale", "text_scale", "start", "end"):  # 1 and 1.0 are the same record, in the same JSON
            if isinstance(value := getattr(self, name), int):
                object.__setattr__(self, name, float(value))

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; `record_from_json` reads it back."""
        return asdict(self)


def record_from_json(value: Mapping[str, Any]) -> AdapterRecord:
    """Read what `AdapterRecord.to_json` wrote, or a part of it.

    Raises:
        DaguerreError: an unknown field, or a value out of range.
    """
    known = [each.name for each in fields(AdapterRecord)]
    if unknown := [name for name in value if name not in known]:
        raise DaguerreError(f"An adapter has no field {unknown[0]!r}; it has {', '.join(known)}.")
    if "kind" not in value or "name" not in value:
        raise DaguerreError("An adapter needs the fields kind and name.")
    return AdapterRecord(**value)


def check_scale(name: str, scale: object) -> None:
    """Raise DaguerreError for anything but a number between ±MAX_SCALE."""
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not isfinite(scale) or abs(scale) > MAX_SCALE:
        raise DaguerreError(f"The scale of {name!r} is {scale!r}; it is a number such as 0.8, between ±{MAX_SCALE:g}.")


def check_interval(name: str, start: object, end: object) -> None:
    """Raise DaguerreError unless 0 ≤ start < end ≤ 1."""
    numbers = all(isinstance(share, int | float) and not isinstance(share, bool) for share in (start, end))
    if not numbers or not 0 <= start < end <= 1:  # type: ignore[operator]
        raise DaguerreError(f"{name!r} applies from {start!r} to {end!r}; give two shares of the steps, such as 0 and 0.8.")


def adapter_stem(path: Path) -> str:
    """The name that other programs give to the adapter in a file: its stem, of a folder its name."""
    return path.name if path.is_dir() else path.stem

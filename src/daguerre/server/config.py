"""The settings of a server, and its limits."""

from dataclasses import dataclass
from pathlib import Path

MEBIBYTE = 1 << 20
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Limits:
    """What one caller may ask for. Beyond a limit a request gets a typed error that names it.

    queued: jobs that wait; more get 429.
    body: bytes of a request. body_seconds: until it has arrived.
    upload_pixels: of an input image, read from its header before it is decoded.
    side: pixels of a side. steps, images: of a job. work: width · height · images · steps of a job, all passes together.
    prompt: characters. setting: bytes of one stored setting, as JSON.
    batch: images that are sampled at the same time for one caller.
    """

    queued: int = 64
    body: int = 64 * MEBIBYTE
    body_seconds: float = 60.0
    upload_pixels: int = 40_000_000
    side: int = 4096
    steps: int = 1000
    images: int = 64
    work: int = 4_000_000_000
    prompt: int = 32_000
    setting: int = 1 << 18
    batch: int = 8


@dataclass(frozen=True)
class ServerConfig:
    """Where a server listens, what it serves, and where it keeps what people made.

    host: any other than this machine's loopback address needs a token.
    token: what callers send as the password of HTTP Basic, or as a bearer token; None asks for nothing.
    model: offered and loaded first: a name, a path or an id of the hub; None is the embedded model.
    data: folder of the database and the images. Checkpoints in its folder `models` are offered, too.
    """

    data: Path
    host: str = "127.0.0.1"
    port: int = 7860
    token: str | None = None
    model: str | None = None
    limits: Limits = Limits()

"""The settings of a server, and its limits."""

import errno
import socket
from dataclasses import dataclass
from pathlib import Path

from daguerre.errors import DaguerreError

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
    engine: what computes the UNet of every model (see `runtime.engines`).
    data: folder of the database and the images. Checkpoints in its folder `models` are offered, too.
    """

    data: Path
    host: str = "127.0.0.1"
    port: int = 7860
    token: str | None = None
    model: str | None = None
    engine: str = "torch"
    limits: Limits = Limits()


def check_address(config: ServerConfig) -> None:
    """Check that the server may listen at its address, and that the port is free.

    Raises:
        DaguerreError: another machine could reach it without a token, or the port is taken.
    """
    if config.host not in LOOPBACK and not config.token:
        raise DaguerreError(
            f"--host {config.host} is open to other machines, so it needs a token. Add --token with a long random text, or use "
            "--host 127.0.0.1."
        )
    try:
        with socket.create_server((config.host, config.port), family=socket.AF_INET6 if ":" in config.host else socket.AF_INET):
            pass
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        reason = "is in use by another program; choose another one with --port" if taken else f"cannot be used: {error.strerror or error}"
        raise DaguerreError(f"The port {config.port} of {config.host} {reason}.") from error

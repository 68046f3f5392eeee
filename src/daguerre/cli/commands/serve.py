"""`daguerre serve`: the studio, a page and HTTP interfaces that other programs use."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from daguerre.atomic_io import expand_user
from daguerre.cli.model_loading import check_model_name, choose_threads
from daguerre.cli.options import EngineName, ModelName, OptionalInt, OptionalPath, OptionalText
from daguerre.cli.parsing import UsageError, parse_options, usage_errors
from daguerre.runtime.allocator import tune_malloc
from daguerre.server.config import ServerConfig, check_address


@dataclass(frozen=True)
class ServeOptions:
    """Serve a page to generate images in a browser, OpenAI's Images interface and that of the Stable Diffusion web UI. Ctrl-C stops it; the
    running job is finished, queued ones are kept."""

    host: str = ServerConfig.host
    """Address to listen on. Any other than this machine's own needs --token."""
    port: int = ServerConfig.port
    """Port to listen on."""
    token: OptionalText = None
    """What callers give as password or bearer token. Default: the environment variable DAGUERRE_TOKEN, else none."""
    model: ModelName = None
    engine: EngineName = "torch"
    """What computes the UNet: torch; compile, for GPUs; or openvino, for CPUs."""
    threads: OptionalInt = None
    """Number of CPU threads. Default: one for each core."""
    data_dir: OptionalPath = None
    """Folder for images, queue and settings; checkpoints in its folder `models` are offered, too. Default: ~/.local/share/daguerre."""


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    options = parse_options(ServeOptions, arguments, "serve")
    if not 1 <= options.port <= 65535:
        raise UsageError(f"--port is {options.port}; it is a number from 1 to 65535.")
    if options.token is not None and not options.token.strip():
        raise UsageError("--token is empty; give a long random text.")
    check_model_name(options.model)
    data = expand_user(options.data_dir or default_folder())
    token = options.token or os.environ.get("DAGUERRE_TOKEN") or None
    config = ServerConfig(data.absolute(), options.host, options.port, token, options.model, options.engine)
    with usage_errors():
        check_address(config)
    tune_malloc()
    if options.threads is not None:  # else all cores: who else computes now says nothing about the days that a server runs
        choose_threads(options.threads)
    from daguerre.server.serve import serve  # here, because it imports torch

    serve(config)


def default_folder() -> Path:
    """Where programs keep a user's data (XDG base directory specification)."""
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share") / "daguerre"

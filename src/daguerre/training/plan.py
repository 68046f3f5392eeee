"""What a training is about to do, in a few lines on stderr before it starts: parameters, epochs, memory, disk space, extra stages."""

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from daguerre.data import Dataset
from daguerre.training.checkpoint import MAX_CHECKPOINTS
from daguerre.training.config import LoopConfig
from daguerre.training.distributed.processes import rank, world

FLOAT_BYTES = 4
STATE_BYTES = {"adamw": 8, "adamw8bit": 2, "adafactor": 0, "prodigy": 16}  # of an optimizer, for each weight


def announce(sentence: str) -> None:
    """Print one line to stderr, from the first process."""
    if rank() == 0:
        print(sentence, file=sys.stderr)


def epoch_images(source: Dataset) -> int | None:
    """The number of images of an epoch; None if they are rendered, new ones in each step."""
    return None if source.rendered else len(source)


def network_bytes(*networks: nn.Module) -> int:
    """The size of networks in a file, in bytes, in their present precision."""
    return sum(tensor.nbytes for network in networks for tensor in network.state_dict().values())


def print_plan(
    networks: Mapping[str, nn.Module],
    loop: LoopConfig,
    out: Path,
    *,
    images: int | None,
    model_bytes: int | None = None,
    cache_bytes: float = 0,
) -> None:
    """Print what will be trained, for how long, and the memory and the disk space that it needs.

    Args:
        networks: the trained networks by name.
        images: the number of images of an epoch; None if they are new in each step.
        model_bytes: of the finished model; default: of the networks.
        cache_bytes: of encoded images.
    """
    parameters = [p for network in networks.values() for p in network.parameters() if p.requires_grad]
    trained = sum(p.numel() for p in parameters)
    weights = network_bytes(*networks.values())
    checkpoint = weights * (2 if loop.ema_decay else 1) + trained * STATE_BYTES[loop.optimizer]
    needed = checkpoint * (MAX_CHECKPOINTS + 1) + (weights if model_bytes is None else model_bytes) + cache_bytes
    memory = (checkpoint + trained * FLOAT_BYTES) / (world() if loop.sharding == "fsdp" else 1)
    existing = next(path for path in (out.absolute(), *out.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    epochs = "new images in every step" if images is None else f"epochs: {loop.max_train_steps * loop.batch_size / images:.3g}"
    announce(
        f"training: {trained / 1e6:.3g} million parameters of the {' and the '.join(networks)}, steps: {loop.max_train_steps}, "
        f"batch size: {loop.batch_size}, {epochs}\n"
        f"memory: {_gigabytes(memory)}{' in each process' * (world() > 1)} for what is trained (weights, gradients, optimizer, averages); "
        f"frozen networks and images come on top\n"
        f"disk: {_gigabytes(checkpoint)} per checkpoint, up to {_gigabytes(needed)} in all; {_gigabytes(free)} free"
        f"{' (a resumed run uses part of it already)' if (out / 'checkpoints').is_dir() else ''}"
        f"{': this may not suffice' if free < needed else ''}"
    )


def example_caption(captions: Sequence[str]) -> str:
    """A caption for the command that is printed at the end of a training: the shortest that a shell takes as it is."""
    return min((c for c in captions if c.strip() and c.isprintable() and not c.startswith("-")), key=len, default="an image")


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.3g} GB"

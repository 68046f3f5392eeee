"""Samples that are encoded once and kept in files of some hundred, so that a set may be larger than the memory.

    KEY-COUNT-SIZE/000000.safetensors    the first SIZE samples, with their captions and a checksum

A file is complete or does not exist, so an encoding that was killed continues with the first one that is missing. Files are mapped into
memory: only the samples that are used are read.
"""

import json
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import count as natural_numbers
from itertools import groupby, islice
from math import ceil
from pathlib import Path

import torch
from torch import Tensor

from daguerre.data import BatchLoader
from daguerre.errors import DaguerreError
from daguerre.progress import track
from daguerre.training.distributed.processes import is_distributed, rank, state, world
from daguerre.weights.tensors.safetensors import SafetensorsFile, save_safetensors

FILE_SAMPLES = 512  # samples of a file


class EncodedSamples:
    """N tensors of one shape: the rows of blocks (B, …), all of one length except the last, which may be memory maps."""

    def __init__(self, blocks: Sequence[Tensor]):
        self.blocks = list(blocks)

    def __len__(self) -> int:
        return sum(map(len, self.blocks))

    def __getitem__(self, index: int) -> Tensor:
        block, row = divmod(index, len(self.blocks[0]))
        return self.blocks[block][row]

    def __iter__(self) -> Iterator[Tensor]:
        return (sample for block in self.blocks for sample in block)

    @property
    def nbytes(self) -> int:
        return sum(block.nbytes for block in self.blocks)

    def first(self, count: int) -> "EncodedSamples":
        """The first `count` samples."""
        size = len(self.blocks[0])
        return EncodedSamples([block[: count - size * number] for number, block in enumerate(self.blocks[: ceil(count / size)])])

    def joined(self) -> Tensor:
        """All samples in memory, (N, …)."""
        return torch.cat(self.blocks)


@torch.no_grad()
def encode_once(
    batches: BatchLoader, encode: Callable[[Tensor], Tensor], device: torch.device, count: int, stem: Path, workers: int
) -> tuple[EncodedSamples, list[str]]:
    """Encode the first `count` samples of `batches`, rounded up to whole batches, and return them with their captions.

    What was written under the same `stem` is read instead; what is damaged of it is named and encoded again. Several processes share the
    work. encode: pixels (B, 3, H, W) on `device` → any tensor (B, …).
    """
    total, each = ceil(count / batches.batch_size), max(1, FILE_SAMPLES // batches.batch_size)  # batches
    numbers = range(ceil(total / each))
    paths = [stem.with_name(f"{stem.name}-{count}-{each * batches.batch_size}") / f"{number:06d}.safetensors" for number in numbers]
    share = numbers[len(numbers) * rank() // world() : len(numbers) * (rank() + 1) // world()]
    missing, counter = [number for number in share if not _is_whole(paths[number])], natural_numbers()
    for _, group in groupby(missing, lambda number: number - next(counter)):  # successive ones
        run = list(group)
        start, length = run[0] * each, min(total, (run[-1] + 1) * each) - run[0] * each
        stream = islice(batches.stream(start, workers, processes=workers > 1), length)
        stream = iter(track(stream, "encoding images", length, shown=rank() == 0))
        for number in run:
            encoded, captions = [], []
            for batch in islice(stream, each):
                encoded.append(encode(batch.x.to(device)).cpu())
                captions += batch.captions
            _write(paths[number], torch.cat(encoded), captions)
    if is_distributed():
        state().wait_for_everyone()
    files = [SafetensorsFile(path) for path in paths]
    captions = [caption for file in files for caption in json.loads(file.metadata["captions"])]
    return EncodedSamples([file.tensor("samples") for file in files]), captions


def _write(path: Path, samples: Tensor, captions: Sequence[str]) -> None:
    texts = json.dumps(captions)
    save_safetensors(path, {"samples": samples}, {"captions": texts, "checksum": _checksum(samples, texts)})


def _checksum(samples: Tensor, captions: str) -> str:
    return f"{zlib.crc32(samples.contiguous().view(torch.uint8).numpy().data, zlib.crc32(captions.encode())):08x}"


def _is_whole(path: Path) -> bool:
    """Whether a file has what was written; names it if it is damaged."""
    if not path.exists():
        return False
    try:
        file = SafetensorsFile(path)
        if _checksum(file.tensor("samples"), file.metadata["captions"]) == file.metadata["checksum"]:
            return True
    except (DaguerreError, KeyError):
        pass
    print(f"{path} is damaged; its images are encoded again", file=sys.stderr)
    return False

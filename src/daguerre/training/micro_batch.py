"""`--gradient-accumulation-steps auto`: the smallest number of parts of a batch that fit in memory, found by trying.

The memory of a step grows by the same amount with each image that is computed at once. The losses and gradients of one image, then of two,
show this amount. Two are tried only if twice the memory of one is there.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator

from daguerre.errors import DaguerreError
from daguerre.runtime.allocator import trim_heap
from daguerre.runtime.memory_estimate import free_memory
from daguerre.training.batch_random import BatchRandom
from daguerre.training.config import LoopConfig
from daguerre.training.plan import STATE_BYTES, announce

if TYPE_CHECKING:
    from daguerre.training.loop import TrainingTask

USED = 0.9  # share of the free memory; the rest is for gaps between blocks


def find_parts(task: "TrainingTask", batch: Any, config: LoopConfig, accelerator: Accelerator) -> int:
    """The smallest divisor of the images of a process for which a part fits into the free memory of its device, the same in all processes.

    Prints the result. The weights, buffers and random numbers stay as they are. A part has one image even if that may not suffice.
    """
    images, networks = config.batch_size // accelerator.num_processes, task.networks
    trained = sum(p.numel() for network in networks.values() for p in network.parameters() if p.requires_grad)
    free = max(0.0, USED * _free_memory(accelerator.device) - trained * STATE_BYTES[config.optimizer])
    kept = {name: {key: value.clone() for key, value in network.state_dict().items()} for name, network in networks.items()}
    one = _memory_of_step(task, batch[:1], config, accelerator)
    two = _memory_of_step(task, batch[:2], config, accelerator) if images > 1 and 2 * one <= free else 2 * one
    for name, network in networks.items():
        network.load_state_dict(kept[name])  # buffers such as those of a codebook have changed
    needs = {parts: one + (images // parts - 1) * max(two - one, 0) for parts in range(1, images + 1) if images % parts == 0}
    found = next((parts for parts, need in needs.items() if need <= free), images)
    parts = int(accelerator.gather(torch.tensor([found], device=accelerator.device)).max())  # pyright: ignore[reportAttributeAccessIssue]
    size, warning = images // parts, ": this may not suffice" if needs[parts] > free else ""
    announce(
        f"batch: {parts} part{'s' * (parts > 1)} of {size} image{'s' * (size > 1)}, about {needs[parts] / 1e9:.2g} GB of "
        f"{free / 1e9:.2g} GB{warning}"
    )
    return parts


def _memory_of_step(task: "TrainingTask", batch: Any, config: LoopConfig, accelerator: Accelerator) -> int:
    """The bytes that the losses and gradients of a part take at their peak, in the last step, which has all terms of the loss."""
    gpus = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(gpus), torch.compiler.set_stance("force_eager"), _peak(accelerator.device) as peak, accelerator.autocast():
        random = BatchRandom.of_step(config.seed, 0, config.batch_size, 0, len(batch))
        for _, loss, _ in task.losses(batch, task.networks, random, config.max_train_steps - 1):
            with torch.autocast(accelerator.device.type, enabled=False):
                loss.backward()
    for network in task.networks.values():
        network.zero_grad()
    return peak["bytes"]


@contextmanager
def _peak(device: torch.device) -> Iterator[dict[str, int]]:
    """Afterwards "bytes" is the most memory that the block had in use beyond what was in use before."""
    peak: dict[str, int] = {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak["bytes"] = torch.cuda.max_memory_allocated(device) - before
        return
    trim_heap()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak to the present use, see proc(5)
    except OSError as error:
        raise DaguerreError(
            "--gradient-accumulation-steps auto measures memory on CUDA GPUs and on Linux; give a number, such as 4."
        ) from error
    before = _resident("VmRSS")
    yield peak
    peak["bytes"] = _resident("VmHWM") - before


def _resident(field: str) -> int:
    """Bytes of this process in RAM."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[field].split()[0]) * 1024


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return free_memory(device)
    return free_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # which the processes of this machine share

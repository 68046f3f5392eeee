"""What a network may ask of the threads of a CPU."""

import os

import torch


def omp_wait_is_passive() -> bool:
    """Whether a thread that waits for others leaves them the processor: there is none, or OpenMP was told so before it was loaded.

    If not, and another program has one of two cores, what is made of many small steps crawls: a convolution of 70 ms takes five seconds
    by the some 300 of `nn.winograd`.
    """
    told = "GOMP_SPINCOUNT" in os.environ or os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive"
    return told or torch.get_num_threads() == 1

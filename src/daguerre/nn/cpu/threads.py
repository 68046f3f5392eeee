"""How the OpenMP threads of this process wait for each other."""

import os

import torch


def omp_wait_is_passive() -> bool:
    """True if idle OpenMP threads sleep instead of spinning: a single thread, OMP_WAIT_POLICY=passive or GOMP_SPINCOUNT set.

    Algorithms made of many small steps need this. With spinning threads and another program on one of two cores, a Winograd convolution
    of 70 ms takes five seconds. So these environment variables also select the convolution and attention algorithm in float32, and results
    with different settings differ by rounding.
    """
    passive = "GOMP_SPINCOUNT" in os.environ or os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive"
    return passive or torch.get_num_threads() == 1

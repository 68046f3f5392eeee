"""The default dtype of a machine."""

import torch

from daguerre.runtime.dtype import default_dtype, has_native_bfloat16


def test_a_cpu_uses_bfloat16_only_with_native_instructions():
    chosen = default_dtype(torch.device("cpu"))
    assert chosen in ({torch.bfloat16, torch.float32} if has_native_bfloat16() else {torch.float32})


def test_the_choice_is_stable_within_a_process():
    assert len({default_dtype(torch.device("cpu")) for _ in range(3)}) == 1


def test_a_gpu_uses_float16():
    assert default_dtype(torch.device("cuda")) == torch.float16

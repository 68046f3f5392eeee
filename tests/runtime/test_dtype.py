"""The default dtype of a device."""

import pytest
import torch

from daguerre.runtime import dtype as dtype_choice

CPU = torch.device("cpu")


def test_a_processor_without_bfloat16_instructions_computes_in_float32(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dtype_choice, "has_native_bfloat16", lambda: False)
    assert dtype_choice.default_dtype(CPU) == torch.float32


def test_the_choice_stays_the_same_in_a_process():
    choices = {dtype_choice.default_dtype(CPU) for _ in range(3)}
    assert len(choices) == 1
    assert choices <= {torch.float32, torch.bfloat16}


def test_a_gpu_computes_in_float16():
    assert dtype_choice.default_dtype(torch.device("cuda")) == torch.float16

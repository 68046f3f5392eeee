"""Which dtype a machine computes in where none is asked for."""

import pytest
import torch

from daguerre.runtime import dtype as dtype_choice

CPU = torch.device("cpu")


@pytest.mark.parametrize(("native", "quicker"), [(True, True), (True, False), (False, True)])
def test_a_processor_computes_in_bfloat16_only_where_it_can_and_is_quicker(monkeypatch: pytest.MonkeyPatch, native: bool, quicker: bool):
    monkeypatch.setattr(dtype_choice, "multiplies_bfloat16", lambda: native)
    monkeypatch.setattr(dtype_choice, "_quicker_in_bfloat16", lambda: quicker)
    assert dtype_choice.default_dtype(CPU) == (torch.bfloat16 if native and quicker else torch.float32)


def test_the_choice_stays_for_a_process(monkeypatch: pytest.MonkeyPatch):
    chosen = dtype_choice.default_dtype(CPU)
    monkeypatch.setattr(dtype_choice, "TRIES", 0)
    assert dtype_choice.default_dtype(CPU) == chosen


def test_what_is_quicker_is_what_the_clock_says(monkeypatch: pytest.MonkeyPatch):
    now = 0.0

    def conv2d(x: torch.Tensor, _weight: torch.Tensor, padding: int) -> None:
        nonlocal now
        now += 1.0 if x.dtype == torch.bfloat16 else 2.0

    monkeypatch.setattr(dtype_choice.F, "conv2d", conv2d)
    monkeypatch.setattr(dtype_choice.time, "perf_counter", lambda: now)
    dtype_choice._quicker_in_bfloat16.cache_clear()
    assert dtype_choice._quicker_in_bfloat16()
    dtype_choice._quicker_in_bfloat16.cache_clear()


def test_a_gpu_computes_in_float16():
    assert dtype_choice.default_dtype(torch.device("cuda")) == torch.float16

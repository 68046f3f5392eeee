"""Which dtype a machine computes in where none is asked for."""

import pytest
import torch

from daguerre.weights import quickest

CPU = torch.device("cpu")


@pytest.mark.parametrize(("native", "quicker"), [(True, True), (True, False), (False, True)])
def test_a_processor_computes_in_bfloat16_only_where_it_can_and_is_quicker(monkeypatch: pytest.MonkeyPatch, native: bool, quicker: bool):
    monkeypatch.setattr(quickest, "multiplies_bfloat16", lambda: native)
    monkeypatch.setattr(quickest, "_quicker_in_bfloat16", lambda: quicker)
    assert quickest.default_dtype(CPU) == (torch.bfloat16 if native and quicker else torch.float32)


def test_the_choice_stays_for_a_process(monkeypatch: pytest.MonkeyPatch):
    chosen = quickest.default_dtype(CPU)
    monkeypatch.setattr(quickest, "TRIES", 0)
    assert quickest.default_dtype(CPU) == chosen


def test_what_is_quicker_is_what_the_clock_says(monkeypatch: pytest.MonkeyPatch):
    now = 0.0

    def conv2d(x: torch.Tensor, _weight: torch.Tensor, padding: int) -> None:
        nonlocal now
        now += 1.0 if x.dtype == torch.bfloat16 else 2.0

    monkeypatch.setattr(quickest.F, "conv2d", conv2d)
    monkeypatch.setattr(quickest.time, "perf_counter", lambda: now)
    quickest._quicker_in_bfloat16.cache_clear()
    assert quickest._quicker_in_bfloat16()
    quickest._quicker_in_bfloat16.cache_clear()


def test_a_gpu_computes_in_float16():
    assert quickest.default_dtype(torch.device("cuda")) == torch.float16

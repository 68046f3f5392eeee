"""Many small steps are taken only where threads that wait do not keep the processor from those that work."""

import pytest
import torch

from daguerre.nn.cpu.threads import omp_wait_is_passive


@pytest.mark.parametrize(
    ("threads", "told", "calm"),
    [(1, {}, True), (2, {}, False), (2, {"GOMP_SPINCOUNT": "10000"}, True), (2, {"OMP_WAIT_POLICY": "PASSIVE"}, True)],
)
def test_one_thread_is_calm_and_several_are_when_told(monkeypatch: pytest.MonkeyPatch, threads: int, told: dict[str, str], calm: bool):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert omp_wait_is_passive() is calm

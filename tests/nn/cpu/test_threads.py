"""OpenMP threads wait passively if there is only one, or if the environment asks for it."""

import pytest
import torch

from daguerre.nn.cpu.threads import omp_wait_is_passive


@pytest.mark.parametrize(
    ("threads", "variables", "passive"),
    [(1, {}, True), (2, {}, False), (2, {"GOMP_SPINCOUNT": "10000"}, True), (2, {"OMP_WAIT_POLICY": "PASSIVE"}, True)],
)
def test_wait_policy(monkeypatch: pytest.MonkeyPatch, threads: int, variables: dict[str, str], passive: bool):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert omp_wait_is_passive() is passive

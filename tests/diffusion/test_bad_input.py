"""Invalid inputs of samplers give clear errors; samplers are small stateless functions."""

import ast
import inspect
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from daguerre.diffusion import SAMPLERS, Schedule, ScheduleConfig, get_sigmas, samplers
from daguerre.errors import DaguerreError

X = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
GRID = get_sigmas(Schedule(ScheduleConfig()), 5)


def denoise(x: Tensor, sigma: Tensor) -> Tensor:
    return x / (1 + sigma**2)


def noise(x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    return torch.zeros_like(x)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ([3.0, 2.0, 2.0, 0.0], r"must descend, but σ\[1\] = 2 is followed by σ\[2\] = 2"),
        ([1.0, 2.0, 3.0, 4.0, 5.0], r"σ\[0\] = 1 is followed by σ\[1\] = 2"),
        ([3.0, math.nan, 1.0, 0.5, 0.0], r"σ\[0\] = 3 is followed by σ\[1\] = nan"),
        ([3.0], "sigmas has 1 values; it needs at least two"),
        ([], "sigmas has 0 values"),
        (3.0, "sigmas has 1 values"),
        ([3.0, 2.0, 1.0, 0.0, -1.0], "sigmas ends at -1"),
    ],
)
def test_invalid_sigmas(name: str, sigmas: list[float] | float, message: str):
    with pytest.raises(DaguerreError, match=message):
        SAMPLERS[name](denoise, X, torch.tensor(sigmas), noise=noise)


@pytest.mark.parametrize("name", [name for name, sampler in SAMPLERS.items() if sampler.stochastic])
def test_stochastic_samplers_need_noise(name: str):
    with pytest.raises(DaguerreError, match=f"'{name}' needs noise; pass `noise`, or use a deterministic one"):
        SAMPLERS[name](denoise, X, GRID)


def test_eta_needs_noise():
    with pytest.raises(DaguerreError, match="'euler' needs noise"):
        SAMPLERS["euler"](denoise, X, GRID, eta=0.5)


@pytest.mark.parametrize(("name", "steps"), [("plms", 1), ("pndm_prk", 3), ("dpm_solver_2s", 1), ("dpmpp_3s", 2)])
def test_too_few_steps(name: str, steps: int):
    with pytest.raises(DaguerreError, match=f"'{name}' needs at least {steps + 1} steps, not {steps}"):
        SAMPLERS[name](denoise, X, torch.linspace(3, 0, steps + 1), noise=noise)


@pytest.mark.parametrize("name", SAMPLERS)
def test_nan_from_the_network_stops_the_sampler_at_that_step(name: str):
    """Independent of which evaluation returned it."""
    broken_below = GRID[2].item() * 1.01

    def breaks(x: Tensor, sigma: Tensor) -> Tensor:
        return denoise(x, sigma) if sigma > broken_below else x * math.nan

    steps, number = [], "[23]"  # samplers with an evaluation at σ_next fail in step 2
    if name == "ddim_inversion":
        number = "1"
    with pytest.raises(DaguerreError, match=rf"is not finite after step {number} of 5 of '{name}'.*NaN or inf"):
        steps.extend(SAMPLERS[name](breaks, X, GRID, noise=noise))


def test_inversion_cannot_end_at_infinity():
    grid = GRID.clone()
    grid[0] = math.inf
    with pytest.raises(DaguerreError, match=r"'ddim_inversion' ends at the first σ.*terminal='capped'"):
        SAMPLERS["ddim_inversion"](denoise, X, grid)


def test_the_step_from_infinity_does_not_count():
    with pytest.raises(DaguerreError, match="'plms' needs at least 2 steps after the one from σ = inf, not 1"):
        SAMPLERS["plms"](denoise, X, torch.tensor([math.inf, 2.0, 0.0]))
    ((x, x0),) = SAMPLERS["euler"](lambda x, sigma: x / 2, X, torch.tensor([math.inf, 0.0]))
    torch.testing.assert_close(x, X / 2)
    torch.testing.assert_close(x0, X / 2)


def test_an_unknown_option():
    with pytest.raises(DaguerreError, match=r"'dpmpp_2m' has no option 'solvr'\. Did you mean 'solver'"):
        SAMPLERS["dpmpp_2m"](denoise, X, GRID, solvr="heun")


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_stated_number_of_evaluations(name: str):
    sampler, calls = SAMPLERS[name], []

    def counted(x: Tensor, sigma: Tensor) -> Tensor:
        calls.append(sigma.item())
        return denoise(x, sigma)

    grid = get_sigmas(Schedule(ScheduleConfig()), 8)
    steps = list(sampler(counted, X, grid, noise=noise))
    assert len(steps) == 8
    assert all(x.shape == x0.shape == X.shape and x.dtype == X.dtype for x, x0 in steps)
    extra = {"plms": 1, "pndm_prk": 9}.get(name, 0)  # the Heun step, the three Runge–Kutta steps
    last = sampler.evaluations - 1  # the step to 0 evaluates no other σ
    assert len(calls) == 8 * sampler.evaluations + extra - last


@pytest.mark.parametrize("name", SAMPLERS)
def test_inputs_are_not_modified(name: str):
    x, grid = X.clone(), GRID.clone()
    list(SAMPLERS[name](denoise, x, grid, noise=noise))
    torch.testing.assert_close(x, X, rtol=0, atol=0)
    torch.testing.assert_close(grid, GRID, rtol=0, atol=0)


def test_samplers_are_small_functions_without_state():
    folder = Path(inspect.getfile(samplers)).parent
    functions = {sampler.run.__name__ for sampler in SAMPLERS.values()}
    for path in folder.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 400
        for node in ast.walk(ast.parse(path.read_text())):
            assert not isinstance(node, ast.Global | ast.Nonlocal)
            assert not isinstance(node, ast.ClassDef) or path.stem == "registry"
            if isinstance(node, ast.FunctionDef) and node.name in functions:
                functions.discard(node.name)
                body = node.body[1:]  # after the docstring
                assert body[-1].end_lineno - body[0].lineno + 1 <= 25, node.name  # type: ignore[operator]
    assert not functions

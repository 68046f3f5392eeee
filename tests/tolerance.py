"""Tolerances from error bounds, so that tests pass on every processor.

Rounding differs between instruction sets, so a tolerance never comes from what one processor gave. It is a small factor times the error
of n rounded terms, ε·√n, or times the error of a reference in the same dtype, measured against float64.
"""

import torch
from torch import Tensor

FACTOR = 4.0
NETWORK_TERMS = 10_000  # of a tiny network: about 20 layers that each sum about 500 terms


def relative_error(x: Tensor, truth: Tensor) -> float:
    """‖x − truth‖ / ‖truth‖ in float64."""
    assert x.shape == truth.shape
    return ((x.double() - truth.double()).norm() / truth.double().norm()).item()


def assert_rounded(x: Tensor, truth: Tensor, terms: int = 1, *, dtype: torch.dtype | None = None, factor: float = FACTOR) -> None:
    """Assert that x differs from the truth by no more than `terms` rounded terms in its dtype: `factor`·ε·√terms.

    dtype: in which x was computed, if not that of x.
    """
    limit = factor * torch.finfo(dtype or x.dtype).eps * terms**0.5
    error = relative_error(x, truth)
    assert error <= limit, f"relative error {error:.3g}, allowed {limit:.3g}"


def assert_as_accurate(x: Tensor, reference: Tensor, truth: Tensor, *, factor: float = FACTOR) -> None:
    """Assert that the error of x is at most `factor` times that of the reference, or a few ε if the reference is nearly exact."""
    limit = factor * max(relative_error(reference, truth), FACTOR * torch.finfo(reference.dtype).eps)
    error = relative_error(x, truth)
    assert error <= limit, f"relative error {error:.3g}, allowed {limit:.3g}"

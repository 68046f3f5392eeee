"""Inception, against a plain functional implementation of the same graph, written from its description."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from daguerre.errors import DaguerreError
from daguerre.models.inception import Inception, resize_like_tensorflow
from daguerre.weights.inception import load_inception
from tests.tolerance import assert_rounded


class Reference:
    """The graph as a sequence of calls on a state dict; `conv` is a convolution, a batch norm with ε = 0.001, and a ReLU."""

    def __init__(self, weights: dict[str, Tensor]):
        self.w = weights

    def conv(self, x: Tensor, name: str, stride: int = 1, padding: int | tuple[int, int] = 0) -> Tensor:
        y = F.conv2d(x, self.w[f"{name}.conv.weight"], None, stride, padding)
        mean, var, scale, shift = (self.w[f"{name}.bn.{k}"][:, None, None] for k in ("running_mean", "running_var", "weight", "bias"))
        return ((y - mean) / (var + 0.001).sqrt() * scale + shift).clamp(min=0)

    def chain(self, x: Tensor, block: str, *steps: tuple) -> Tensor:
        for name, *options in steps:
            x = self.conv(x, f"{block}.{name}", *options)
        return x

    def mean3(self, x: Tensor) -> Tensor:
        ones = torch.ones(1, 1, *x.shape[2:], dtype=x.dtype)
        kernel = torch.ones(1, 1, 3, 3, dtype=x.dtype)
        total = F.conv2d(x.flatten(0, 1)[:, None], kernel, padding=1).view_as(x)
        return total / F.conv2d(ones, kernel, padding=1)

    def a(self, x: Tensor, n: str) -> Tensor:
        five = self.chain(x, n, ("branch5x5_1",), ("branch5x5_2", 1, 2))
        three = self.chain(x, n, ("branch3x3dbl_1",), ("branch3x3dbl_2", 1, 1), ("branch3x3dbl_3", 1, 1))
        return torch.cat([self.chain(x, n, ("branch1x1",)), five, three, self.chain(self.mean3(x), n, ("branch_pool",))], 1)

    def c(self, x: Tensor, n: str) -> Tensor:
        wide, tall = (0, 3), (3, 0)
        seven = self.chain(x, n, ("branch7x7_1",), ("branch7x7_2", 1, wide), ("branch7x7_3", 1, tall))
        double = [(f"branch7x7dbl_{i}", 1, padding) for i, padding in ((2, tall), (3, wide), (4, tall), (5, wide))]
        twice = self.chain(x, n, ("branch7x7dbl_1",), *double)
        return torch.cat([self.chain(x, n, ("branch1x1",)), seven, twice, self.chain(self.mean3(x), n, ("branch_pool",))], 1)

    def e(self, x: Tensor, n: str, pooled: Tensor) -> Tensor:
        three = self.chain(x, n, ("branch3x3_1",))
        double = self.chain(x, n, ("branch3x3dbl_1",), ("branch3x3dbl_2", 1, 1))
        split = [self.conv(y, f"{n}.{name}{half}", 1, padding) for y, name in ((three, "branch3x3_2"), (double, "branch3x3dbl_3"))
                 for half, padding in (("a", (0, 1)), ("b", (1, 0)))]  # fmt: skip
        return torch.cat([self.chain(x, n, ("branch1x1",)), *split, self.chain(pooled, n, ("branch_pool",))], 1)

    def __call__(self, x: Tensor) -> Tensor:
        x = self.conv(x, "Conv2d_1a_3x3", 2)
        x = self.conv(x, "Conv2d_2a_3x3")
        x = F.max_pool2d(self.conv(x, "Conv2d_2b_3x3", 1, 1), 3, 2)
        x = F.max_pool2d(self.conv(self.conv(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3"), 3, 2)
        assert x.shape[1:] == (192, 35, 35)
        for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
            x = self.a(x, name)
        n = "Mixed_6a"
        double = self.chain(x, n, ("branch3x3dbl_1",), ("branch3x3dbl_2", 1, 1), ("branch3x3dbl_3", 2))
        x = torch.cat([self.chain(x, n, ("branch3x3", 2)), double, F.max_pool2d(x, 3, 2)], 1)
        assert x.shape[1:] == (768, 17, 17)
        for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
            x = self.c(x, name)
        n = "Mixed_7a"
        three = self.chain(x, n, ("branch3x3_1",), ("branch3x3_2", 2))
        seven = self.chain(x, n, ("branch7x7x3_1",), ("branch7x7x3_2", 1, (0, 3)), ("branch7x7x3_3", 1, (3, 0)), ("branch7x7x3_4", 2))
        x = torch.cat([three, seven, F.max_pool2d(x, 3, 2)], 1)
        assert x.shape[1:] == (1280, 8, 8)
        x = self.e(x, "Mixed_7b", self.mean3(x))
        x = self.e(x, "Mixed_7c", F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=-torch.inf), 3, 1))
        return x.flatten(2).mean(2)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Random weights that keep the variance, under the names and shapes of the published file."""
    torch.manual_seed(0)
    found = {}
    for name, tensor in Inception().state_dict().items():
        kind = name.split(".")[-2:]
        if kind == ["conv", "weight"]:
            found[name] = torch.randn(tensor.shape) * (2 / tensor[0].numel()) ** 0.5
        else:
            found[name] = {"weight": torch.ones_like, "running_var": torch.ones_like}.get(kind[1], torch.zeros_like)(tensor)
            found[name] = found[name] + 0.1 * torch.rand(tensor.shape)
    return {**found, "fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}


@torch.no_grad()
def test_the_features_equal_the_reference(weights: dict[str, Tensor], tmp_path: Path):
    torch.save({**weights, "Conv2d_1a_3x3.bn.num_batches_tracked": torch.tensor(7)}, tmp_path / "inception.pth")
    network = load_inception(tmp_path / "inception.pth")
    pixels = torch.randint(0, 256, (1, 3, 299, 299), generator=torch.Generator().manual_seed(1))
    found = network(pixels / 127.5 - 1)
    expected = Reference(weights)((pixels.float() - 128) / 128)
    assert found.shape == (1, 2048)
    assert expected.std() > 0.01
    assert_rounded(found, expected, terms=100 * 1500)  # about 100 layers that sum about 1500 terms each


def test_resizing_is_that_of_tensorflow():
    """From its definition: output i is at input i·(in/out), interpolated with the next input; the last one repeats."""
    x = torch.rand(1, 2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = resize_like_tensorflow(x, 11)
    for i in range(11):
        for j in range(11):
            top, left = int(i * 5 / 11), int(j * 7 / 11)
            down, right = i * 5 / 11 - top, j * 7 / 11 - left
            below, beyond = min(top + 1, 4), min(left + 1, 6)
            upper = x[..., top, left] * (1 - right) + x[..., top, beyond] * right
            lower = x[..., below, left] * (1 - right) + x[..., below, beyond] * right
            assert torch.allclose(found[..., i, j], upper * (1 - down) + lower * down, atol=1e-12)
    image = torch.rand(1, 3, 299, 299)
    assert torch.equal(resize_like_tensorflow(image, 299), image)


def test_other_weights_are_refused(weights: dict[str, Tensor], tmp_path: Path):
    torch.save({**weights, "fc.weight": torch.zeros(1000, 2048)}, tmp_path / "torchvision.pth")
    with pytest.raises(DaguerreError, match=r"has 1000 classes and is not the Inception network .* pt_inception-2015-12-05"):
        load_inception(tmp_path / "torchvision.pth")
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(DaguerreError, match="has other tensors"):
        load_inception(tmp_path / "other.pth")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pt")
    with pytest.raises(DaguerreError, match=r"script\.pt"):
        load_inception(tmp_path / "script.pt")

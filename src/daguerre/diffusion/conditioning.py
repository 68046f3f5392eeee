"""The conditions of a network: text states, a vector, extra channels, a class. Every field is optional."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from daguerre.errors import DaguerreError

FIELDS = ("context", "vector", "concat", "label")


@dataclass(frozen=True)
class Conditioning:
    """The conditions of a batch of images; all given fields have the same batch size.

    context: (B, L, D) token states for cross-attention.
    vector:  (B, V) pooled text or size embedding, added to the time embedding.
    concat:  (B, C, H, W) extra input channels (inpainting, depth).
    label:   (B,) class indices.
    num_conditions: how many conditions of the same images and timesteps the batch holds one after another, as in classifier-free
        guidance. A network may compute once what is equal for all of them.
    row_labels: what each row of the batch encodes, for code that records attention; empty if unknown.
    """

    context: Tensor | None = None
    vector: Tensor | None = None
    concat: Tensor | None = None
    label: Tensor | None = None
    num_conditions: int = 1
    row_labels: tuple[object, ...] = ()

    @property
    def batch(self) -> int | None:
        """The batch size, None if no field is given."""
        return next((len(tensor) for tensor in self._given().values()), None)

    @property
    def nbytes(self) -> int:
        """The size of all fields."""
        return sum(tensor.nbytes for tensor in self._given().values())

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Conditioning":
        """Move every field; only floating-point fields change their dtype."""
        return self._map(lambda tensor: tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None))

    def repeat(self, times: int) -> "Conditioning":
        """Tile the whole batch: [a, b] repeated twice is [a, b, a, b]."""
        repeated = self._map(lambda tensor: tensor.repeat(times, *[1] * (tensor.ndim - 1)))
        return replace(repeated, num_conditions=1, row_labels=self.row_labels * times)

    def expand(self, batch: int) -> "Conditioning":
        """Repeat a single condition for `batch` images; a Conditioning that already has this batch size stays as it is.

        Raises:
            DaguerreError: the batch size is neither 1 nor `batch`.
        """
        if self.batch in (None, batch):
            return self
        if self.batch != 1:
            raise DaguerreError(f"Got {self.batch} conditions for {batch} images; give one, or one for each image.")
        return self.repeat(batch)

    def __getitem__(self, images: slice) -> "Conditioning":
        return replace(self._map(lambda tensor: tensor[images]), num_conditions=1, row_labels=self.row_labels[images])

    @staticmethod
    def cat(conditions: Sequence["Conditioning"]) -> "Conditioning":
        """Concatenate along the batch.

        Raises:
            DaguerreError: a field is given in one and missing in another, or shapes differ in more than the batch.
        """
        joined: dict[str, Any] = {}
        for name in FIELDS:
            tensors = [tensor for condition in conditions if (tensor := getattr(condition, name)) is not None]
            shapes = {tuple(tensor.shape[1:]) for tensor in tensors}
            if tensors and (len(tensors) < len(conditions) or len(shapes) > 1):
                raise DaguerreError(
                    f"Conditions evaluated together must agree in {name}: {len(tensors)} of {len(conditions)} have it, "
                    f"with shapes {sorted(shapes)} without the batch. Pad the shorter prompt to the same number of chunks."
                )
            if tensors:
                joined[name] = torch.cat(tensors)
        if all(condition.row_labels for condition in conditions):
            joined["row_labels"] = tuple(label for condition in conditions for label in condition.row_labels)
        return Conditioning(**joined)

    def _given(self) -> dict[str, Tensor]:
        return {name: tensor for name in FIELDS if (tensor := getattr(self, name)) is not None}

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Conditioning":
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in self._given().items()}
        return replace(self, **changed)

"""What a network is told besides the noisy picture: text states, a vector, extra channels, a class. Every field is optional."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from daguerre.errors import DaguerreError

PARTS = ("context", "vector", "concat", "label")


@dataclass(frozen=True)
class Conditioning:
    """The conditions of a batch of pictures; fields that are given agree in their batch.

    context: (B, L, D) token states for cross-attention.
    vector:  (B, V) pooled text or size embedding, added to the time embedding.
    concat:  (B, C, H, W) extra input channels (inpainting, depth).
    label:   (B,) class numbers.
    num_conditions: how many conditions of the same images and timesteps the batch holds one after another, as in classifier-free
        guidance. A network may compute once what is equal for all of them.
    row_labels: one label for each row of the batch, or none at all; says what the row encodes, for those who watch a network.
    """

    context: Tensor | None = None
    vector: Tensor | None = None
    concat: Tensor | None = None
    label: Tensor | None = None
    num_conditions: int = 1
    row_labels: tuple[object, ...] = ()

    @property
    def batch(self) -> int | None:
        """The number of pictures spoken of, None where nothing is said."""
        return next((len(tensor) for tensor in self._given().values()), None)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Conditioning":
        """Move every field; only floating-point fields change their dtype."""
        return self._map(lambda tensor: tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None))

    def repeat(self, times: int) -> "Conditioning":
        """Tile the whole batch: [a, b] repeated twice is [a, b, a, b]."""
        repeated = self._map(lambda tensor: tensor.repeat(times, *[1] * (tensor.ndim - 1)))
        return replace(repeated, num_conditions=1, row_labels=self.row_labels * times)

    def expand(self, batch: int) -> "Conditioning":
        """One condition spoken to `batch` pictures; a condition that already has this batch stays.

        Raises:
            DaguerreError: the conditions are neither one nor as many as the pictures.
        """
        if self.batch in (None, batch):
            return self
        if self.batch != 1:
            raise DaguerreError(f"{self.batch} conditions were given for {batch} pictures; give one, or one for each.")
        return self.repeat(batch)

    def __getitem__(self, pictures: slice) -> "Conditioning":
        return replace(self._map(lambda tensor: tensor[pictures]), num_conditions=1, row_labels=self.row_labels[pictures])

    @staticmethod
    def cat(conditions: Sequence["Conditioning"]) -> "Conditioning":
        """Concatenate along the batch.

        Raises:
            DaguerreError: a field is given in one and missing in another, or the shapes differ beyond the batch.
        """
        joined: dict[str, Any] = {}
        for name in PARTS:
            tensors = [tensor for condition in conditions if (tensor := getattr(condition, name)) is not None]
            shapes = {tuple(tensor.shape[1:]) for tensor in tensors}
            if tensors and (len(tensors) < len(conditions) or len(shapes) > 1):
                raise DaguerreError(
                    f"Conditions of one call must agree in {name}: {len(tensors)} of {len(conditions)} have it, "
                    f"with shapes {sorted(shapes)} beyond the batch. Pad the shorter prompt to as many chunks."
                )
            if tensors:
                joined[name] = torch.cat(tensors)
        if all(condition.row_labels for condition in conditions):
            joined["row_labels"] = tuple(label for condition in conditions for label in condition.row_labels)
        return Conditioning(**joined)

    def _given(self) -> dict[str, Tensor]:
        return {name: tensor for name in PARTS if (tensor := getattr(self, name)) is not None}

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Conditioning":
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in self._given().items()}
        return replace(self, **changed)

"""Prompt scheduling: the conditions of every sampling step, and their guidance weights.

For parts c_i of weight w_i and a negative prompt n, guidance of scale s is  D = D(n) + s Σ w_i (D(c_i) − D(n))  (Liu et al. 2022,
arXiv:2206.01714, eq. 11), which is a weighted sum: s·w_i for each part and 1 − s Σ w_i for the negative prompt.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from daguerre.conditioning.clip import Conditioner
from daguerre.conditioning.prompt import Prompt, PromptLine
from daguerre.diffusion.conditioning import Conditioning
from daguerre.errors import DaguerreError


class RowLabel(NamedTuple):
    """What a row of a batch of conditions encodes: a prompt line of one of the images (see `Conditioning.row_labels`)."""

    line: PromptLine
    negative: bool
    image: int


PromptState = tuple[PromptLine, bool]  # a line, and whether it comes from a negative prompt


class GuidedConditions(NamedTuple):
    """Conditions and the guidance weight of each, as `classifier_free_guidance` takes them; the weights sum to 1."""

    conditions: list[Conditioning]
    weights: list[float]


@dataclass(frozen=True)
class PromptConditions:
    """The conditions of all prompts at one step: one `Conditioning` per part for the whole batch, and one for the negative prompts.

    All have the same number of tokens. `weights` are those of the parts, before they are multiplied by the guidance scale.
    """

    parts: tuple[Conditioning, ...]
    weights: tuple[float, ...]
    negative: Conditioning

    def with_guidance(self, scale: float) -> GuidedConditions:
        """The conditions weighted for classifier-free guidance of this scale, the negative last."""
        weights = [scale * weight for weight in self.weights]
        return GuidedConditions([*self.parts, self.negative], [*weights, 1 - sum(weights)])


class PromptSchedule:
    """The prompts and negative prompts of a batch of images over all steps of a run.

    Conditions are encoded when a step first needs them, then cached, so a prompt that does not change is encoded once. Images may have
    different numbers of parts; an image with fewer uses its negative prompt in their place, which leaves the sum above unchanged.
    """

    def __init__(self, conditioner: Conditioner, prompts: Sequence[str], negatives: Sequence[str], steps: int) -> None:
        """Parse all prompts, so that errors appear before sampling starts.

        Raises:
            DaguerreError: a prompt cannot be parsed, or the numbers of prompts and negative prompts differ.
        """
        if len(prompts) != len(negatives) or not prompts:
            raise DaguerreError(f"There are {len(prompts)} prompts and {len(negatives)} negative prompts; give one of each per image.")
        self.conditioner, self.steps = conditioner, steps
        self.prompts = [Prompt.parse(prompt) for prompt in prompts]
        self.negatives = [Prompt.parse(negative, composed=False) for negative in negatives]
        self.weights = _merge_weights([[part.weight for part in prompt.parts] for prompt in self.prompts])
        self._cache: dict[tuple[PromptState, ...], PromptConditions] = {}
        self.states = tuple(self._states(step) for step in range(steps))

    def at(self, step: int) -> PromptConditions:
        """The conditions of a step, counted from 0; the same object for all steps with the same text."""
        states = self.states[step]
        if states not in self._cache:
            self._cache[states] = self._encode(states)
        return self._cache[states]

    def _states(self, step: int) -> tuple[PromptState, ...]:
        """The lines of a step: for each weight one per image, then the negative prompts."""
        negatives = [(prompt.at(step, self.steps)[0], True) for prompt in self.negatives]
        columns = []
        for prompt, negative in zip(self.prompts, negatives, strict=True):
            remaining = [(part.weight, line) for part, line in zip(prompt.parts, prompt.at(step, self.steps), strict=True)]
            column: list[PromptState] = []
            for weight in self.weights:
                found = next((entry for entry in remaining if entry[0] == weight), None)
                if found:
                    remaining.remove(found)
                column.append((found[1], False) if found else negative)
            columns.append([*column, negative])
        return tuple(state for row in zip(*columns, strict=True) for state in row)

    def _encode(self, states: tuple[PromptState, ...]) -> PromptConditions:
        """Encode each distinct line once, all in one call, and distribute the results."""
        distinct = list(dict.fromkeys(states))
        encoded = self.conditioner.encode([line for line, _ in distinct], [negative for _, negative in distinct])
        index = {state: i for i, state in enumerate(distinct)}
        B = len(self.prompts)
        rows = [states[i : i + B] for i in range(0, len(states), B)]
        picks = [torch.tensor([index[state] for state in row]) for row in rows]
        *parts, negative = (
            Conditioning(
                context=_select_rows(encoded.context, pick),
                vector=_select_rows(encoded.vector, pick),
                label=_select_rows(encoded.label, pick),
                row_labels=tuple(RowLabel(line, negative, image) for image, (line, negative) in enumerate(row)),
            )
            for row, pick in zip(rows, picks, strict=True)
        )
        return PromptConditions(tuple(parts), self.weights, negative)


def _merge_weights(weights: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """The smallest multiset that contains every image's weights."""
    union: Counter[float] = Counter()
    for row in weights:
        union |= Counter(row)
    return tuple(union.elements())


def _select_rows(tensor: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if tensor is None else tensor[rows.to(tensor.device)]

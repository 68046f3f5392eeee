"""What a whole run says, step by step: prompts that change and prompts in parts, as conditions and the weights of their guidance.

For parts c_i of weight w_i and a negative n, guidance of scale s is  D = D(n) + s Σ w_i (D(c_i) − D(n))  (Liu et al. 2022,
arXiv:2206.01714, eq. 11): the weights s·w_i, and 1 − s Σ w_i on the negative.
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


PromptState = tuple[PromptLine, bool]  # a line, and whether it stems from a negative prompt


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
    """Prompts and negative prompts of a batch of pictures over the steps of a run.

    What a step says is encoded when it is first asked for and kept, so a prompt that does not change is read once. Pictures may have
    different numbers of parts: where one has fewer, its negative stands in, which changes nothing in the sum above.
    """

    def __init__(self, conditioner: Conditioner, prompts: Sequence[str], negatives: Sequence[str], steps: int) -> None:
        """Parse everything, so that mistakes are told before a run begins.

        Raises:
            DaguerreError: if a prompt cannot be read, or if there is not one negative for each prompt.
        """
        if len(prompts) != len(negatives) or not prompts:
            raise DaguerreError(f"{len(prompts)} prompts came with {len(negatives)} negative prompts; give one of each for each picture.")
        self.conditioner, self.steps = conditioner, steps
        self.prompts = [Prompt.parse(prompt) for prompt in prompts]
        self.negatives = [Prompt.parse(negative, composed=False) for negative in negatives]
        self.weights = _merge_weights([[voice.weight for voice in prompt.parts] for prompt in self.prompts])
        self._read: dict[tuple[PromptState, ...], PromptConditions] = {}
        self.said = tuple(self._said(step) for step in range(steps))

    def at(self, step: int) -> PromptConditions:
        """The conditions of a step, counted from 0; the same object as long as nothing changes."""
        said = self.said[step]
        if said not in self._read:
            self._read[said] = self._encode(said)
        return self._read[said]

    def _said(self, step: int) -> tuple[PromptState, ...]:
        """The lines of a step: one for each picture, for each weight in turn, and then for the negatives."""
        negatives = [(prompt.at(step, self.steps)[0], True) for prompt in self.negatives]
        columns = []
        for prompt, negative in zip(self.prompts, negatives, strict=True):
            waiting = [(voice.weight, line) for voice, line in zip(prompt.parts, prompt.at(step, self.steps), strict=True)]
            column: list[PromptState] = []
            for weight in self.weights:
                found = next((entry for entry in waiting if entry[0] == weight), None)
                if found:
                    waiting.remove(found)
                column.append((found[1], False) if found else negative)
            columns.append([*column, negative])
        return tuple(said for row in zip(*columns, strict=True) for said in row)

    def _encode(self, said: tuple[PromptState, ...]) -> PromptConditions:
        """Read each different line once, all in one call, and hand them out."""
        different = list(dict.fromkeys(said))
        read = self.conditioner.encode([line for line, _ in different], [negative for _, negative in different])
        place = {entry: number for number, entry in enumerate(different)}
        B = len(self.prompts)
        rows = [said[i : i + B] for i in range(0, len(said), B)]
        picks = [torch.tensor([place[entry] for entry in row]) for row in rows]
        *parts, negative = (
            Conditioning(
                context=_rows(read.context, pick),
                vector=_rows(read.vector, pick),
                row_labels=tuple(RowLabel(line, negative, image) for image, (line, negative) in enumerate(row)),
            )
            for row, pick in zip(rows, picks, strict=True)
        )
        return PromptConditions(tuple(parts), self.weights, negative)


def _merge_weights(weights: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """The fewest weights that hold each picture's: every weight as often as the picture that has it most often."""
    most: Counter[float] = Counter()
    for row in weights:
        most |= Counter(row)
    return tuple(most.elements())


def _rows(tensor: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if tensor is None else tensor[rows.to(tensor.device)]

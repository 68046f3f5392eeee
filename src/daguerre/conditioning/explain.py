"""What a prompt says, for people: its tree, what each step says, its tokens and windows, and what looks like a slip."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from daguerre.conditioning.chunks import AnyTokenizer, Chunk, find_words, split_into_chunks
from daguerre.conditioning.prompt import Prompt, PromptLine
from daguerre.conditioning.syntax import PromptError, caret_message
from daguerre.errors import DaguerreError


@dataclass(frozen=True)
class StepPrompt:
    """What one part, counted from 1, says at some steps, counted from 1; windows: the tokens in each, without begin, end and padding."""

    part: int
    steps: tuple[int, ...]
    line: PromptLine
    chunks: tuple[int, ...]


@dataclass(frozen=True)
class PromptExplanation:
    """A prompt over a run of so many steps. room: the tokens that a window holds. parted: words of several tokens, as their texts."""

    prompt: Prompt
    steps: int
    chunk_length: int
    step_prompts: tuple[StepPrompt, ...]
    multi_token_words: tuple[tuple[str, ...], ...]

    def text(self) -> str:
        """For people."""
        lines = [self.prompt.tree(), "", f"over {self.steps} steps"]
        for saying in self.step_prompts:
            part = f"part {saying.part}, " if len(self.prompt.parts) > 1 else ""
            lines.append(f"  {part}{_ranges(saying.steps)}: {_shown(saying.line)}")
            tokens, windows = " + ".join(map(str, saying.chunks)), len(saying.chunks)
            lines.append(
                f"    {tokens} {_many('token', sum(saying.chunks))} in {windows} {_many('window', windows)} of {self.chunk_length}"
            )
        if self.multi_token_words:
            lines += ["", f"words of several tokens: {', '.join('·'.join(word) for word in self.multi_token_words)}"]
        for slip in self.prompt.warnings:
            lines += ["", f"note, character {slip.at + 1}:", caret_message(self.prompt.source, slip.at, slip.message)]
        return "\n".join(lines)

    def json(self) -> dict[str, Any]:
        """The same as a JSON object."""
        says = [
            {
                "part": saying.part,
                "steps": list(saying.steps),
                "pieces": [{"text": piece.text, "weight": piece.weight} for stretch in saying.line for piece in stretch],
                "tokens": list(saying.chunks),
            }
            for saying in self.step_prompts
        ]
        return {
            "prompt": self.prompt.source,
            "weights": [voice.weight for voice in self.prompt.parts],
            "steps": self.steps,
            "window": self.chunk_length,
            "says": says,
            "notes": [{"character": slip.at + 1, "says": slip.message} for slip in self.prompt.warnings],
        }


def explain(source: str, steps: int, tokenizer: AnyTokenizer) -> PromptExplanation:
    """Read a prompt as a run of so many steps would.

    Raises:
        DaguerreError: it has no meaning; below the sentence a caret shows the place.
    """
    try:
        prompt = Prompt.parse(source)
        said = [prompt.at(step, steps) for step in range(steps)]
    except PromptError as error:
        raise DaguerreError(f"{error}\n\n{caret_message(source, error.at, 'here')}") from error
    special = {tokenizer.bos, tokenizer.eos, tokenizer.pad}
    sayings: list[StepPrompt] = []
    parted: dict[tuple[str, ...], None] = {}  # a set that keeps its order
    for part, lines in enumerate(zip(*said, strict=True), 1):
        for line in dict.fromkeys(lines):
            chunks = split_into_chunks(tokenizer, line)
            windows = tuple(sum(number not in special for number in chunk.ids) for chunk in chunks)
            sayings.append(StepPrompt(part, tuple(step for step, other in enumerate(lines, 1) if other == line), line, windows))
            parted |= dict.fromkeys(_multi_token_words(tokenizer, chunks))
    return PromptExplanation(prompt, steps, tokenizer.max_length - 2, tuple(sayings), tuple(parted))


def _multi_token_words(tokenizer: AnyTokenizer, chunks: Sequence[Chunk]) -> list[tuple[str, ...]]:
    """The words of several tokens, as the texts of these."""
    ids = [number for chunk in chunks for number in chunk.ids]
    return [tuple(tokenizer.decode([ids[i]]) for i in word.positions) for word in find_words(tokenizer, chunks) if len(word.positions) > 1]


def _shown(line: PromptLine) -> str:
    stretches = (
        " ".join(
            repr(piece.text.strip()) + (f" × {piece.weight:.4g}" if piece.weight != 1 else "") for piece in stretch if piece.text.strip()
        )
        for stretch in line
    )
    return " BREAK ".join(stretch or "nothing" for stretch in stretches)


def _ranges(steps: Sequence[int]) -> str:
    """Steps in words: "step 1", "steps 1 to 10", "steps 1, 3, 5 … 19"."""
    if len(steps) == 1:
        return f"step {steps[0]}"
    strides = {after - before for before, after in pairwise(steps)}
    if strides == {1}:
        return f"steps {steps[0]} to {steps[-1]}"
    if len(steps) > 4:
        return f"steps {steps[0]}, {steps[1]}, {steps[2]} … {steps[-1]}"
    return f"steps {', '.join(map(str, steps))}"


def _many(name: str, count: int) -> str:
    return name if count == 1 else f"{name}s"

"""Explain how a prompt is read: its syntax tree, its text at each step, its tokens and chunks, and warnings."""

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
    """The text of one part at some steps, both counted from 1.

    tokens_per_chunk: without begin, end and padding.
    """

    part: int
    steps: tuple[int, ...]
    line: PromptLine
    tokens_per_chunk: tuple[int, ...]


@dataclass(frozen=True)
class PromptExplanation:
    """How a prompt is read in a run of `steps` steps.

    chunk_length: how many tokens a chunk holds. multi_token_words: words of several tokens, each as the texts of its tokens.
    """

    prompt: Prompt
    steps: int
    chunk_length: int
    step_prompts: tuple[StepPrompt, ...]
    multi_token_words: tuple[tuple[str, ...], ...]

    def text(self) -> str:
        """The explanation as text."""
        lines = [self.prompt.tree(), "", f"{self.steps} steps"]
        for entry in self.step_prompts:
            part = f"part {entry.part}, " if len(self.prompt.parts) > 1 else ""
            lines.append(f"  {part}{_format_steps(entry.steps)}: {_format_line(entry.line)}")
            counts = entry.tokens_per_chunk
            tokens, chunks = _plural("token", sum(counts)), _plural("chunk", len(counts))
            lines.append(f"    {' + '.join(map(str, counts))} {tokens} in {len(counts)} {chunks} of {self.chunk_length}")
        if self.multi_token_words:
            lines += ["", f"words of several tokens: {', '.join('·'.join(word) for word in self.multi_token_words)}"]
        for warning in self.prompt.warnings:
            lines += ["", f"warning, character {warning.at + 1}:", caret_message(self.prompt.source, warning.at, warning.message)]
        return "\n".join(lines)

    def json(self) -> dict[str, Any]:
        """The explanation as a JSON object."""
        step_prompts = [
            {
                "part": entry.part,
                "steps": list(entry.steps),
                "text": [{"text": piece.text, "weight": piece.weight} for segment in entry.line for piece in segment],
                "tokens_per_chunk": list(entry.tokens_per_chunk),
            }
            for entry in self.step_prompts
        ]
        return {
            "prompt": self.prompt.source,
            "weights": [part.weight for part in self.prompt.parts],
            "steps": self.steps,
            "chunk_length": self.chunk_length,
            "step_prompts": step_prompts,
            "warnings": [{"character": warning.at + 1, "message": warning.message} for warning in self.prompt.warnings],
        }


def explain(source: str, steps: int, tokenizer: AnyTokenizer) -> PromptExplanation:
    """Parse a prompt for a run of `steps` steps and tokenize it.

    Raises:
        DaguerreError: the prompt cannot be parsed; the message shows the position with a caret.
    """
    try:
        prompt = Prompt.parse(source)
        lines_by_step = [prompt.at(step, steps) for step in range(steps)]
    except PromptError as error:
        raise DaguerreError(f"{error}\n\n{caret_message(source, error.at, 'here')}") from error
    special = {tokenizer.bos, tokenizer.eos, tokenizer.pad}
    step_prompts: list[StepPrompt] = []
    words: dict[tuple[str, ...], None] = {}  # an ordered set
    for part, lines in enumerate(zip(*lines_by_step, strict=True), 1):
        for line in dict.fromkeys(lines):
            chunks = split_into_chunks(tokenizer, line)
            counts = tuple(sum(number not in special for number in chunk.ids) for chunk in chunks)
            step_prompts.append(StepPrompt(part, tuple(step for step, other in enumerate(lines, 1) if other == line), line, counts))
            words |= dict.fromkeys(_multi_token_words(tokenizer, chunks))
    return PromptExplanation(prompt, steps, tokenizer.max_length - 2, tuple(step_prompts), tuple(words))


def _multi_token_words(tokenizer: AnyTokenizer, chunks: Sequence[Chunk]) -> list[tuple[str, ...]]:
    """The words of several tokens, each as the texts of its tokens."""
    ids = [number for chunk in chunks for number in chunk.ids]
    return [tuple(tokenizer.decode([ids[i]]) for i in word.positions) for word in find_words(tokenizer, chunks) if len(word.positions) > 1]


def _format_line(line: PromptLine) -> str:
    segments = (
        " ".join(
            repr(piece.text.strip()) + (f" × {piece.weight:.4g}" if piece.weight != 1 else "") for piece in segment if piece.text.strip()
        )
        for segment in line
    )
    return " BREAK ".join(segment or "nothing" for segment in segments)


def _format_steps(steps: Sequence[int]) -> str:
    """Steps in words: "step 1", "steps 1 to 10", "steps 1, 3, 5 … 19"."""
    if len(steps) == 1:
        return f"step {steps[0]}"
    strides = {after - before for before, after in pairwise(steps)}
    if strides == {1}:
        return f"steps {steps[0]} to {steps[-1]}"
    if len(steps) > 4:
        return f"steps {steps[0]}, {steps[1]}, {steps[2]} … {steps[-1]}"
    return f"steps {', '.join(map(str, steps))}"


def _plural(name: str, count: int) -> str:
    return name if count == 1 else f"{name}s"

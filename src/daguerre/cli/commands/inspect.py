"""`daguerre inspect FILE`: how an image was generated, what a checkpoint contains, or how a prompt is parsed and encoded."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from daguerre.cli.model_loading import check_model_name, open_model
from daguerre.cli.options import ModelName, OptionalText
from daguerre.cli.parsing import UsageError, parse_options, usage_errors
from daguerre.errors import DaguerreError
from daguerre.pipelines.comparison import read_comparison
from daguerre.pipelines.metadata.readers import describe_unread, read_foreign
from daguerre.pipelines.metadata.write import TEXT, Provenance, daguerre_json, parameters, read_image_texts
from daguerre.pipelines.plan_graph import plan_graph
from daguerre.pipelines.request import Request, check_unicode
from daguerre.pipelines.tasks import VQ_PRIOR
from daguerre.progress import spinner
from daguerre.weights.catalog import find, local, may_be_on_the_hub

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SIGNATURES = b"\x89PNG", b"\xff\xd8\xff", b"RIFF"  # the first bytes of PNG, JPEG and WebP


@dataclass(frozen=True)
class InspectOptions:
    """Show the metadata of an image, the contents of a checkpoint or an adapter, or how a prompt is parsed.

    Of a checkpoint only the header is read.
    """

    file: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """An image, a checkpoint file or its folder, a LoRA or an embedding, a name that `daguerre models` lists, or a Hub id."""
    prompt: OptionalText = None
    """Instead of a file: print this prompt's syntax tree, its text at each step, and its tokens."""
    steps: int = Request.steps
    """With --prompt: number of sampling steps."""
    tokens: OptionalText = None
    """Print the tokens of this prompt in the model: ids, weights, hidden states and the pooled vector. --json prints all values."""
    blocks: bool = False
    """Print the networks of a model as a tree, with the shapes for one image and the number of parameters of each block."""
    model: ModelName = None
    json: bool = False
    """Print one JSON object."""
    hash: bool = False
    """Also print the SHA-256 of each file of a checkpoint, which reads all of it."""


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    options = parse_options(InspectOptions, arguments, "inspect")
    if options.blocks or options.tokens is not None:
        inspect_model(options)
        return
    if options.prompt is not None and options.file is None:
        with usage_errors():
            check_unicode("prompt", options.prompt)
            inspect_prompt(options.prompt, options.steps, options.model, as_json=options.json)
        return
    if options.file is None or options.prompt is not None:
        raise UsageError("Give either the file of an image or a checkpoint, or --prompt with a text.")
    source = str(options.file)
    with usage_errors():
        image = not may_be_on_the_hub(source) and has_image_signature(local(source) or options.file)
    if image:
        inspect_image(options.file, as_json=options.json)
        return
    from daguerre.adapters.describe import describe_adapter
    from daguerre.weights.inspect import inspect

    report = (None if may_be_on_the_hub(source) else describe_adapter(options.file)) or inspect(source, hashed=options.hash)
    print(report.json() if options.json else "\n".join(report.lines()))


def inspect_model(options: InspectOptions) -> None:
    """Print the tokens of a prompt in a model, or the blocks of its networks.

    Raises:
        UsageError: options contradict each other, there is no such model, or the prompt has a syntax error.
    """
    if options.prompt is not None or (options.blocks and options.tokens is not None):
        raise UsageError("--prompt, --tokens and --blocks exclude each other; give one of them.")
    if options.file is not None and options.model is not None:
        raise UsageError(f"'{options.file}' and --model {options.model} both name a model; give one of them.")
    source = str(options.file) if options.file is not None else options.model
    check_model_name(source)
    if options.blocks:
        from daguerre.weights.blocks import block_trees

        trees = block_trees(source)
        if options.json:
            print(json.dumps([tree.json() for tree in trees], indent=2))
            return
        print("Shapes for one image, channels×height×width, or for one prompt, tokens×width; then the number of parameters.\n")
        print("\n\n".join("\n".join(tree.lines()) for tree in trees))
        return
    from daguerre.conditioning.token_states import encode_tokens

    assert options.tokens is not None
    check_unicode("prompt", options.tokens)
    with spinner("opening the model"):
        model = open_model(source, None, "cpu", "float32", offline=False)
    with usage_errors():
        encoded = encode_tokens(model.conditioner, options.tokens, options.steps)
    if options.json:
        print(json.dumps([each.json() for each in encoded], indent=1, ensure_ascii=False))
        return
    parts = encoded[-1].part > 1
    print("\n\n".join(f"part {each.part}, {each.text()}" if parts else each.text() for each in encoded))


def has_image_signature(path: Path) -> bool:
    """Whether a file starts with the signature of an image format; a folder does not.

    Raises:
        DaguerreError: there is nothing at `path`, or it cannot be read.
    """
    if path.is_dir():
        return False
    try:
        with path.open("rb") as file:
            return file.read(4).startswith(IMAGE_SIGNATURES)
    except OSError as error:
        raise DaguerreError(f"Cannot read '{path}': {error.strerror or error}.") from error


def inspect_prompt(prompt: str, steps: int, model: str | None, *, as_json: bool) -> None:
    """Print how a prompt is parsed and tokenized.

    Raises:
        DaguerreError: the prompt has a syntax error, or there is no such model.
    """
    folder = find(model) / "tokenizer"
    if steps < 1:
        raise DaguerreError(f"steps is {steps}; it must be 1 or more.")

    from daguerre.conditioning import Tokenizer
    from daguerre.conditioning.explain import explain

    tokenizer = Tokenizer.from_folder(folder) if folder.is_dir() else Tokenizer.clip()  # a checkpoint file has none of its own
    explanation = explain(prompt, steps, tokenizer)
    print(json.dumps(explanation.json(), indent=2, ensure_ascii=False) if as_json else explanation.text())


def print_comparison(path: Path, table: "Image", data: dict[str, Any]) -> None:
    """Print the settings of each image of a saved comparison."""
    cells = read_comparison(path, table, data)
    print(f"a comparison of {len(cells)} × {len(cells[0])} images; `daguerre reproduce {path} --cell ROW,COLUMN` generates one again")
    for i, row in enumerate(cells, 1):
        for j, cell in enumerate(row, 1):
            print(f"\nrow {i}, column {j}:\n{parameters(cell.provenance, cell.image.size)}")


def inspect_image(path: Path, *, as_json: bool) -> None:
    """Print the size and the generation metadata of an image; for another program's image also as a command."""
    image, texts = read_image_texts(path)
    request = daguerre_json(texts)
    foreign = None if request else read_foreign(texts)
    if as_json:
        report = {"width": image.width, "height": image.height, "parameters": texts.get(TEXT), "daguerre": request}
        print(json.dumps({**report, "foreign": None if foreign is None else asdict(foreign)}, indent=2, ensure_ascii=False))
        return
    print(f"{path}: {image.width}×{image.height} pixels")
    if request and "cells" in request:
        print_comparison(path, image, request)
        return
    if foreign is None:
        print(texts[TEXT] if TEXT in texts else describe_unread(texts))
    if request:
        print(json.dumps(request, indent=2, ensure_ascii=False))
        print_pipeline(request)
    if foreign:
        print(f"generated by {foreign.software}{f' with the model {foreign.model}' if foreign.model else ''}")
        print(f"  {foreign.command()}")
        if foreign.unused:
            print("not supported here:")
            print("\n".join(f"  {name}: {value}" for name, value in foreign.unused.items()))


def print_pipeline(provenance: Mapping[str, Any]) -> None:
    """Print the pipeline that made an image, one line for each part; nothing for a request that cannot be read or has no such pipeline."""
    try:
        request = Provenance.from_json(provenance).request
    except DaguerreError:
        return
    if request.sampler == VQ_PRIOR:
        return
    print("how it is made:")
    print("\n".join(f"  {line}" for line in plan_graph(request).text().splitlines()))

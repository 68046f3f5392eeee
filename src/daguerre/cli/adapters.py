"""From the options and prompts of a command line to the adapters of a request: files by path, or by name in a folder."""

import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daguerre.adapters.record import AdapterRecord, adapter_stem
from daguerre.atomic_io import expand_user
from daguerre.cli.image_inputs import read_input
from daguerre.errors import DaguerreError, join_names, nearest

if TYPE_CHECKING:
    from daguerre.adapters.record import AdapterKind
    from daguerre.cli.options import AdapterOptions, ControlledAdapterOptions
    from daguerre.pipelines.request import Request

ADAPTER_SUFFIXES = (".safetensors", ".pt", ".bin", ".ckpt", ".pth")
EMBEDDING_SUFFIXES = (*ADAPTER_SUFFIXES, ".png", ".webp")
LORA_TAGS = ("lora", "lyco")
INTERVAL = re.compile(r"(\d*\.?\d+)-(\d*\.?\d+)")  # shares of the steps
KIND_TITLES = {"controlnet": "ControlNet", "t2i-adapter": "T2I-Adapter", "ip-adapter": "IP-Adapter"}


def with_adapter_options(request: "Request", options: "ControlledAdapterOptions") -> "Request":
    """The request with the adapters of the options and their images.

    Raises:
        DaguerreError: as `adapter_records`; or there are too few or too many images.
    """
    maps, images = ([read_input(path) for path in paths] for paths in (options.control_image, options.ip_image))
    controls = [
        *(image_adapter("controlnet", text, guess_mode=options.guess_mode) for text in options.controlnet),
        *(image_adapter("t2i-adapter", text) for text in options.t2i_adapter),
    ]
    if len(maps) != len(controls):
        raise DaguerreError(
            f"There are {len(controls)} ControlNets and T2I-Adapters and {len(maps)} condition maps; give a --control-image for each, "
            "those of the ControlNets first."
        )
    encoder, count = options.image_encoder, len(options.ip_adapter)
    each = len(images) if count == 1 and images else 1
    prompts = [image_adapter("ip-adapter", text, images=each, encoder=encoder and str(encoder)) for text in options.ip_adapter]
    if encoder is not None and not (count and encoder.exists()):
        raise DaguerreError(
            f"There is no image encoder '{encoder}'; check the path." if count else "--image-encoder needs an --ip-adapter."
        )
    if len(images) != each * count:
        raise DaguerreError(f"There are {count} IP-Adapters and {len(images)} --ip-image; give one for each, or several for a single one.")
    return replace(request, adapters=(*adapter_records(options, request), *controls, *prompts), control_images=(*maps, *images))


def image_adapter(kind: "AdapterKind", text: str, **more: Any) -> AdapterRecord:
    """The adapter of FILE, FILE:SCALE or FILE:SCALE:START-END; more: other fields of its record."""
    source, scale, start, end = text, 1.0, 0.0, 1.0
    if not expand_user(text).exists():
        source, *numbers = text.rsplit(":", 2)
        if numbers and (found := INTERVAL.fullmatch(numbers[-1])) and len(numbers) == 2 and _is_number(numbers[0]):
            scale, start, end = float(numbers[0]), float(found[1]), float(found[2])
        elif _is_number(text.rpartition(":")[2]):
            source, scale = text.rpartition(":")[0], float(text.rpartition(":")[2])
        else:
            source = text
    if not (path := expand_user(source)).exists():
        raise DaguerreError(
            f"There is no {KIND_TITLES[kind]} '{source}'; give FILE, FILE:SCALE or FILE:SCALE:START-END, such as a.bin:0.8:0-0.7."
        )
    return AdapterRecord(kind, adapter_stem(path), str(path), scale=scale, start=start, end=end, **more)


def adapter_records(options: "AdapterOptions", request: "Request") -> tuple[AdapterRecord, ...]:
    """The adapters of --lora, of the tags in the first prompt, of --embedding, and those in --embedding-dir that a prompt names.

    Raises:
        DaguerreError: a file or folder does not exist, two files share the name, or a scale is no number.
    """
    for folder in (options.lora_dir, options.embedding_dir):
        if folder is not None and not folder.is_dir():
            raise DaguerreError(f"There is no folder '{folder}'.")
    records = [lora_record(text, options.lora_dir) for text in options.lora]
    records += _tagged(request.prompts, options.lora_dir)
    for path, count in Counter(record.path for record in records).items():
        if count > 1:
            print(f"daguerre: the LoRA '{path}' is given {count} times; its strengths add up.", file=sys.stderr)
    embeddings = [_embedding(text, options.embedding_dir) for text in options.embedding]
    if options.embedding_dir is not None:
        embeddings += _named_embeddings(options.embedding_dir, request, {record.name for record in embeddings})
    return (*records, *embeddings)


def find_adapter_file(name: str, folder: Path, suffixes: Sequence[str] = ADAPTER_SUFFIXES) -> Path | None:
    """The file of an adapter in a folder and its subfolders: by its stem, else by the name that its trainer gave it; None if there is none.

    Raises:
        DaguerreError: two files share the name.
    """
    files = _files(folder, suffixes)
    found = [path for path in files if name in (path.stem, path.name, path.relative_to(folder).with_suffix("").as_posix())]
    found = found or [path for path in files if path.suffix == ".safetensors" and _output_name(path) == name]
    if len(found) > 1:
        raise DaguerreError(f"{name!r} is the name of {len(found)} files ({join_names(map(str, found))}); give one of them by its path.")
    return found[0] if found else None


def _files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())


def _output_name(path: Path) -> str | None:
    from daguerre.weights.tensors.safetensors import read_metadata

    try:
        return read_metadata(path).get("ss_output_name")
    except DaguerreError:  # not the file that is searched
        return None


def lora_record(text: str, folder: Path | None) -> AdapterRecord:
    """The LoRA of `--lora FILE[:SCALE]` or `--lora FILE:TEXT:UNET`."""
    source, numbers = text, []
    while len(numbers) < 2 and not expand_user(source).exists():
        head, colon, tail = source.rpartition(":")
        if not colon or not _is_number(tail):
            break
        source, numbers = head, [float(tail), *numbers]
    path = _existing(source, folder, "LoRA", ADAPTER_SUFFIXES)
    text_scale = numbers[0] if len(numbers) == 2 else None
    return AdapterRecord("lora", adapter_stem(path), str(path), scale=numbers[-1] if numbers else 1.0, text_scale=text_scale)


def _embedding(text: str, folder: Path | None) -> AdapterRecord:
    """The embedding of `--embedding FILE[:WORD]`."""
    source, word = text, None
    if not expand_user(source).exists() and ":" in source:
        source, _, word = source.rpartition(":")
    path = _existing(source, folder, "embedding", EMBEDDING_SUFFIXES)
    return AdapterRecord("embedding", word or _word_of(path), str(path))


def _named_embeddings(folder: Path, request: "Request", known: set[str]) -> Iterator[AdapterRecord]:
    """The embeddings of a folder whose names occur in the prompts."""
    texts = "\n".join((*request.prompts, request.negative_prompt))
    paths = [path for path in _files(folder, EMBEDDING_SUFFIXES) if _names(path.stem, texts) and _may_be_embedding(path)]
    for name, count in Counter(path.stem for path in paths).items():
        if count > 1:
            raise DaguerreError(f"{name!r} is the name of {count} embeddings in '{folder}'; give one of them with --embedding.")
    for path in paths:
        if path.stem not in known:
            yield AdapterRecord("embedding", path.stem, str(path))


def _names(word: str, texts: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", texts, re.IGNORECASE) is not None


def _may_be_embedding(path: Path) -> bool:
    """False for an image that holds no embedding, such as a preview."""
    from daguerre.adapters.embedding import IMAGE_SUFFIXES, read_embedding_image

    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return True
    try:
        read_embedding_image(path)
    except DaguerreError:
        return False
    return True


def _word_of(path: Path) -> str:
    """The word of an embedding: what its file says, else its name."""
    from daguerre.adapters.embedding import load_embedding

    return load_embedding(path).word


def _tagged(prompts: Sequence[str], folder: Path | None) -> Iterator[AdapterRecord]:
    """The LoRAs of the tags in the first prompt, which count for all; a tag whose LoRA is missing gives a note."""
    if not any("<" in prompt for prompt in prompts):
        return
    from daguerre.conditioning.syntax import lora_of_tag, split_tags

    tags = [split_tags(prompt)[1] for prompt in prompts]
    if any(other != tags[0] for other in tags):
        print("daguerre: the tags of the first prompt count for all prompts.", file=sys.stderr)
    for tag in tags[0]:
        if tag.kind not in LORA_TAGS:
            print(f"daguerre: the tag <{tag.kind}:{':'.join(tag.arguments)}> is ignored; only <lora:…> is supported.", file=sys.stderr)
            continue
        lora = lora_of_tag(tag)
        path = None if folder is None else find_adapter_file(lora.name, folder)
        if path is None:
            where = (
                "give the folder of your LoRAs with --lora-dir"
                if folder is None
                else f"'{folder}' has no such LoRA{_near(lora.name, folder)}"
            )
            print(f"daguerre: the LoRA {lora.name!r} of the prompt is ignored; {where}.", file=sys.stderr)
            continue
        text_scale = None if lora.text_scale == lora.scale else lora.text_scale
        yield AdapterRecord("lora", lora.name, str(path), scale=lora.scale, text_scale=text_scale, rank=lora.rank)


def _near(name: str, folder: Path) -> str:
    return nearest(name, [path.stem for path in _files(folder, ADAPTER_SUFFIXES)]).rstrip("?").replace(" Did", "; did")


def _existing(source: str, folder: Path | None, what: str, suffixes: Sequence[str]) -> Path:
    """A path, or the file of that name in the folder. Raises DaguerreError if there is none."""
    if (path := expand_user(source)).exists():
        return path
    if folder is not None and (found := find_adapter_file(source, folder, suffixes)) is not None:
        return found
    where = f", and '{folder}' has no {what} of this name{_near(source, folder)}" if folder is not None else ""
    raise DaguerreError(f"There is no {what} '{source}'{where}; check the path.")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

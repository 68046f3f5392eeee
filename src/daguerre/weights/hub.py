"""Models by their id on the hub: `resolve` turns an id, like a path, into a place on this disk.

    resolve("stabilityai/sdxl-vae")                        # what the repository holds, as a folder
    resolve("stabilityai/sdxl-vae/sdxl_vae.safetensors")   # one file of it
    resolve("stabilityai/sdxl-vae@842b19c")                # of one commit, branch or tag

A path that exists is never taken for an id. The hub's library is loaded when an id is given, and not before; offline, only its cache on
this disk is looked at and no connection is opened.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from daguerre.errors import DaguerreError
from daguerre.weights.diffusers.folder_names import NETWORK_FOLDERS, PART_ALIASES, WEIGHT_STEMS

ID = re.compile(r"(?P<repo>[\w][\w.-]*/[\w][\w.-]*)(?P<file>(/[\w][\w .+-]*)+)?(@(?P<revision>[\w./-]+))?")
WEIGHT_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".bin")


def resolve_hub_id(source: str | Path, *, offline: bool = False, variant: str | None = None, cache: Path | None = None) -> Path:
    """Where a model lies on this disk; fetched first if it is on the hub and was not fetched before.

    Args:
        source: a path, or `OWNER/NAME`, perhaps with `/FILE` and `@REVISION`.
        offline: look only at what was fetched before.
        variant: of the weights, such as "fp16".
        cache: the hub's cache; None: the usual one.

    Raises:
        DaguerreError: there is no such path, no such model on the hub or in the cache, or the hub cannot be reached.
    """
    path = Path(source)
    try:
        if path.exists():
            return path
    except OSError as error:  # a name that no file can have
        raise DaguerreError(f"{str(source)[:80]!r} is neither a path nor an id of the hub.") from error
    found = ID.fullmatch(str(source)) if isinstance(source, str) else None
    if found is None or ".." in str(source):
        raise DaguerreError(f"There is no path {str(source)!r}, and it is no id of the hub either, which looks like OWNER/NAME.")
    repo, file, revision = found["repo"], (found["file"] or "").removeprefix("/"), found["revision"]
    try:
        return _download(repo, file, revision, offline=offline, variant=variant, cache=cache)
    except DaguerreError:
        raise
    except Exception as error:  # the library's own errors, and its HTTP client's, which change with its versions
        raise _hub_error(str(source), revision, error, offline=offline) from error


def _download(repo: str, file: str, revision: str | None, *, offline: bool, variant: str | None, cache: Path | None) -> Path:
    import huggingface_hub as hub  # here, so that nothing of the hub is loaded for models on this disk

    try:  # what was fetched before is taken as it is, so that a picture can be made again and no connection is needed
        if file:
            return Path(hub.hf_hub_download(repo, file, revision=revision, local_files_only=True, cache_dir=cache))
        folder = Path(hub.snapshot_download(repo, revision=revision, local_files_only=True, cache_dir=cache))
        there = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        return _single_or_folder(folder, choose_files(there, repo, variant))
    except (hub.errors.LocalEntryNotFoundError, DaguerreError):
        if offline:
            raise
    if file:
        return Path(hub.hf_hub_download(repo, file, revision=revision, cache_dir=cache))
    wanted = choose_files(hub.HfApi().list_repo_files(repo, revision=revision), repo, variant)
    return _single_or_folder(Path(hub.snapshot_download(repo, revision=revision, allow_patterns=wanted, cache_dir=cache)), wanted)


def _single_or_folder(folder: Path, files: Sequence[str]) -> Path:
    """The folder of these fetched files, or the one checkpoint that they are."""
    return folder / files[0] if len(files) == 1 else folder


def _hub_error(source: str, revision: str | None, error: Exception, *, offline: bool) -> DaguerreError:
    from huggingface_hub import errors

    match error:
        case errors.LocalEntryNotFoundError() | errors.OfflineModeIsEnabled():
            reason = "the hub is not asked offline" if offline else "the hub cannot be reached"
            return DaguerreError(f"{source!r} was not fetched before, and {reason}. Give a path, or fetch it once with a connection.")
        case errors.GatedRepoError():
            return DaguerreError(f"{source!r} is given only to people who accepted its terms on the hub; do so and log in, or give a path.")
        case errors.RevisionNotFoundError():
            return DaguerreError(f"{source!r} has no revision {revision!r}; leave it out for the newest.")
        case errors.RepositoryNotFoundError() | errors.EntryNotFoundError() | errors.HFValidationError():
            return DaguerreError(f"There is no path {source!r}, and the hub has no such model or file.")
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return DaguerreError(f"{source!r} cannot be fetched from the hub: {first}.")


def choose_files(files: Sequence[str], repo: str, variant: str | None = None) -> list[str]:
    """Which files of a repository are fetched: of a folder of parts one precision, and nothing that is not read; else its one checkpoint.

    Raises:
        DaguerreError: there are none of that variant, or several checkpoints to choose from.
    """
    if "model_index.json" not in files and "config.json" not in files:
        whole = [name for name in files if name.endswith(WEIGHT_SUFFIXES)]
        whole = [name for name in whole if name.endswith(".safetensors")] or whole
        if len(whole) != 1:
            there = f"holds {', '.join(sorted(whole)[:8])}" if whole else "holds no checkpoint"
            raise DaguerreError(f"{repo!r} {there}; name one file, as in {repo}/model.safetensors.")
        return whole
    folders = [f"{part}/" for part in (*NETWORK_FOLDERS, *PART_ALIASES.values()) if f"{part}/config.json" in files] or [""]
    wanted = [name for name in files if name == "model_index.json" or name.startswith(("scheduler/", "tokenizer"))]
    for folder in folders:
        wanted += [f"{folder}config.json", *_weights(files, folder, repo, variant)]
    return sorted(set(wanted))


def _weights(files: Sequence[str], folder: str, repo: str, variant: str | None) -> list[str]:
    """The weights of one part: one file, or an index and its shards."""
    for tail in (f".{variant}",) if variant else ("", ".fp16"):
        for suffix in (".safetensors", ".bin"):
            for stem in WEIGHT_STEMS:
                if f"{folder}{stem}{tail}{suffix}" in files:
                    return [f"{folder}{stem}{tail}{suffix}"]
                shard = re.compile(rf"{re.escape(folder + stem)}({re.escape(tail)})?-\d+-of-\d+({re.escape(tail)})?{re.escape(suffix)}")
                index = [f"{folder}{stem}{suffix}.index{tail}.json", f"{folder}{stem}{tail}{suffix}.index.json"]
                if any(name in files for name in index) and suffix == ".safetensors":
                    return [name for name in files if name in index or (shard.fullmatch(name) and tail in name)]
    raise DaguerreError(
        f"{repo!r} has no weights {f'of the variant {variant!r} ' if variant else ''}for {folder.rstrip('/') or 'its network'}."
    )

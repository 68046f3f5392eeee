"""Download models from the Hugging Face Hub: `resolve_hub_id` turns a path or a Hub id into a local path.

    resolve_hub_id("stabilityai/sdxl-vae")                        # the repository, as a folder
    resolve_hub_id("stabilityai/sdxl-vae/sdxl_vae.safetensors")   # one file
    resolve_hub_id("stabilityai/sdxl-vae@842b19c")                # of one commit, branch or tag

An existing path always takes precedence. huggingface_hub is only imported for an id; offline, only its local cache is searched.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from daguerre.errors import DaguerreError
from daguerre.weights.diffusers.folder_names import NETWORK_FOLDERS, PART_ALIASES, find_weights

ID = re.compile(r"(?P<repo>[\w][\w.-]*/[\w][\w.-]*)(?P<file>(/[\w][\w .+-]*)+)?(@(?P<revision>[\w./-]+))?")
WEIGHT_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".bin")


def resolve_hub_id(source: str | Path, *, offline: bool = False, variant: str | None = None, cache: Path | None = None) -> Path:
    """The local path of a model, downloaded from the Hub if it is not in the cache.

    Args:
        source: a path, or `OWNER/NAME`, optionally with `/FILE` and `@REVISION`.
        offline: only search the cache.
        variant: of the weights, such as "fp16".
        cache: the Hub's cache folder. Default: that of huggingface_hub.

    Raises:
        DaguerreError: there is no such path, no such model on the Hub or in the cache, or the Hub cannot be reached.
    """
    path = Path(source)
    try:
        if path.exists():
            return path
    except OSError as error:  # a name that no file can have
        raise DaguerreError(f"{str(source)[:80]!r} is neither a path nor a Hub id.") from error
    found = ID.fullmatch(str(source)) if isinstance(source, str) else None
    if found is None or ".." in str(source):
        raise DaguerreError(f"There is no path {str(source)!r}, and it is no Hub id, which has the form OWNER/NAME.")
    repo, file, revision = found["repo"], (found["file"] or "").removeprefix("/"), found["revision"]
    try:
        return _download(repo, file, revision, offline=offline, variant=variant, cache=cache)
    except DaguerreError:
        raise
    except Exception as error:  # errors of the library and its HTTP client, which change between versions
        raise _hub_error(str(source), revision, error, offline=offline) from error


def _download(repo: str, file: str, revision: str | None, *, offline: bool, variant: str | None, cache: Path | None) -> Path:
    import huggingface_hub as hub  # imported here, because local models do not need it

    try:  # the cache comes first, so that results are reproducible and no connection is needed
        if file:
            return Path(hub.hf_hub_download(repo, file, revision=revision, local_files_only=True, cache_dir=cache))
        folder = Path(hub.snapshot_download(repo, revision=revision, local_files_only=True, cache_dir=cache))
        cached = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        return _single_or_folder(folder, choose_files(cached, repo, variant))
    except (hub.errors.LocalEntryNotFoundError, DaguerreError):
        if offline:
            raise
    if file:
        return Path(hub.hf_hub_download(repo, file, revision=revision, cache_dir=cache))
    wanted = choose_files(hub.HfApi().list_repo_files(repo, revision=revision), repo, variant)
    return _single_or_folder(Path(hub.snapshot_download(repo, revision=revision, allow_patterns=wanted, cache_dir=cache)), wanted)


def _single_or_folder(folder: Path, files: Sequence[str]) -> Path:
    """The folder of the downloaded files, or the file if it is a single checkpoint."""
    return folder / files[0] if len(files) == 1 else folder


def _hub_error(source: str, revision: str | None, error: Exception, *, offline: bool) -> DaguerreError:
    from huggingface_hub import errors

    match error:
        case errors.LocalEntryNotFoundError() | errors.OfflineModeIsEnabled():
            reason = "downloads are disabled offline" if offline else "the Hub cannot be reached"
            return DaguerreError(f"{source!r} is not in the cache, and {reason}. Give a path, or download it once with a connection.")
        case errors.GatedRepoError():
            return DaguerreError(f"{source!r} requires accepting its terms on the Hub; accept them and log in, or give a path.")
        case errors.RevisionNotFoundError():
            return DaguerreError(f"{source!r} has no revision {revision!r}; omit it for the newest.")
        case errors.RepositoryNotFoundError() | errors.EntryNotFoundError() | errors.HFValidationError():
            return DaguerreError(f"There is no path {source!r}, and the Hub has no such model or file.")
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return DaguerreError(f"There is no path {source!r}, and {source!r} cannot be downloaded from the Hub: {first}.")


def choose_files(files: Sequence[str], repo: str, variant: str | None = None) -> list[str]:
    """Choose the files of a repository to download: one precision of a model folder without unused files, or its only checkpoint.

    Raises:
        DaguerreError: there are none of that variant, or several checkpoints.
    """
    if "model_index.json" not in files and "config.json" not in files:
        checkpoints = [name for name in files if name.endswith(WEIGHT_SUFFIXES)]
        checkpoints = [name for name in checkpoints if name.endswith(".safetensors")] or checkpoints
        if len(checkpoints) != 1:
            found = f"has {', '.join(sorted(checkpoints)[:8])}" if checkpoints else "has no checkpoint"
            raise DaguerreError(f"{repo!r} {found}; name one file, as in {repo}/model.safetensors.")
        return checkpoints
    folders = [f"{part}/" for part in (*NETWORK_FOLDERS, *PART_ALIASES.values()) if f"{part}/config.json" in files] or [""]
    wanted = [name for name in files if name == "model_index.json" or name.startswith(("scheduler/", "tokenizer"))]
    for folder in folders:
        wanted += [f"{folder}config.json", *_weights(files, folder, repo, variant)]
    return sorted(set(wanted))


def _weights(files: Sequence[str], folder: str, repo: str, variant: str | None) -> list[str]:
    """The files with one network's weights: a single one, or an index and its shards."""
    names = [name.removeprefix(folder) for name in files if name.startswith(folder)]
    found = find_weights(names, variant)
    if found is None:
        wanted = f"of the variant {variant!r} " if variant else ""
        raise DaguerreError(f"{repo!r} has no weights {wanted}for {folder.rstrip('/') or 'its network'}.")
    if not found.endswith(".json"):
        return [folder + found]
    stem, _, rest = found.partition(".")
    tail = re.escape("." + rest.removesuffix(".json").replace("safetensors.index", "").strip(".")).removesuffix(r"\.")
    shard = re.compile(rf"{re.escape(stem)}({tail}-\d+-of-\d+|-\d+-of-\d+{tail})\.safetensors")
    return [folder + name for name in names if name == found or shard.fullmatch(name)]

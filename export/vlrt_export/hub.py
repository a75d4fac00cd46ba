"""The Hugging Face hub: which names are hub ids, and a local copy of the files an export needs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vlrt.errors import VlrtError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?(@[\w./-]{1,100})?")
_SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
_SAFE_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_TORCH_WEIGHTS = ("*.bin", "*.bin.index.json")


@dataclass(frozen=True)
class Snapshot:
    """A local copy of one commit of a hub repository."""

    name: str
    folder: Path
    commit: str


def is_hub_id(source: str) -> bool:
    """Whether a source that is no local path has the form ``owner/name`` or ``owner/name@revision``."""
    return bool(_HUB_ID.fullmatch(source)) and not source.endswith((".safetensors", ".pt", ".pth", ".bin", ".tar"))


def fetch(source: str, revision: str = "", patterns: tuple[str, ...] = (), weights: bool = True) -> Snapshot:
    """Downloads weights, configuration and tokenizer of a hub repository, or finds them in the hub's cache.

    Args:
        source: ``owner/name`` or ``owner/name@revision``.
        revision: branch, tag or commit; empty for the one in `source`, else the default branch.
        patterns: further file patterns.
        weights: whether the weights are wanted, or configuration and tokenizer alone.

    Raises:
        VlrtError: the hub library is missing, the hub cannot be reached, or it refuses.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise VlrtError("hub ids need `huggingface_hub`", "pip install '.[export]', or give a local folder") from None
    name, _, inline = source.partition("@")
    wanted = revision or inline or None
    try:
        commit, weight_files = _remote(name, wanted)
        files = [*_SIDE_FILES, *patterns, *(weight_files if weights else ())]
        folder = huggingface_hub.snapshot_download(name, revision=commit, allow_patterns=files)
    except Exception as error:  # noqa: BLE001 - the hub library raises a dozen unrelated kinds when there is no network
        return _cached(name, wanted, error)
    return Snapshot(name, Path(folder), commit)


def _remote(name: str, revision: str | None) -> tuple[str, tuple[str, ...]]:
    """The commit, and the patterns of its weights: safetensors where there are any, so that nothing loads twice."""
    import huggingface_hub

    info = huggingface_hub.HfApi().model_info(name, revision=revision, timeout=15)
    files = [sibling.rfilename for sibling in info.siblings or ()]
    safe = any(file.endswith(".safetensors") and "/" not in file for file in files)
    return str(info.sha), _SAFE_WEIGHTS if safe else _TORCH_WEIGHTS


def _cached(name: str, revision: str | None, cause: Exception) -> Snapshot:
    import huggingface_hub

    try:
        folder = Path(huggingface_hub.snapshot_download(name, revision=revision, local_files_only=True))
    except Exception:  # noqa: BLE001 - same: whatever its kind, the answer is that there is no copy
        reason = _reason(cause)
        raise VlrtError(
            f"`{name}` is neither a local path nor to be had from the hub: {reason}",
            "give a local folder or weight file, check the name, or connect to the network",
        ) from cause
    return Snapshot(name, folder, folder.name)


def _reason(cause: Exception) -> str:
    """Why the hub gave nothing; its libraries put the whole chain of addresses and attempts into a connection error."""
    if isinstance(cause, ConnectionError | TimeoutError) or "Connection" in type(cause).__name__:
        return "it cannot be reached"
    text = str(cause).strip()
    return text.splitlines()[0][:200] if text else type(cause).__name__

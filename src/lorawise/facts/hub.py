"""A hub id's facts without its weights: the copy in the hub's cache, or config and headers from the network.

    HF_HUB_CACHE/models--org--name/refs/main → commit → snapshots/commit/config.json, …

The headers of all shards are a few hundred kilobytes; `huggingface_hub` fetches them by byte ranges.
"""

import json
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from lorawise.base.errors import ModelError
from lorawise.base.hub import hub_refusals
from lorawise.facts.disk import Stored
from lorawise.facts.known import nearest_known

PATIENCE = 5.0  # seconds for the hub's address to answer
_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def cached_snapshot(name: str) -> Path | None:
    """The newest snapshot of a hub id that this machine's cache holds a config.json of."""
    if not _ID.fullmatch(name):
        return None
    folder = cache_folder(name)
    try:
        commit = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    snapshot = folder / "snapshots" / Path(commit).name
    return snapshot if (snapshot / "config.json").is_file() else None


def cache_folder(name: str) -> Path:
    """Where the hub's cache keeps a model, whether it is there or not."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"


def hub_headers(name: str) -> tuple[dict[str, Any], Mapping[str, Stored]]:
    """(config, tensors by name) from the hub; no tensors when the repository has no safetensors. `ModelError` says why
    it cannot be had, and what to do offline."""
    from huggingface_hub import get_safetensors_metadata, hf_hub_download
    from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

    if not _ID.fullmatch(name):
        raise ModelError(f"'{name}' is neither a file, a folder nor a hub id", expected="organisation/name")
    _require_connection(name)
    with _told(name):
        config = json.loads(Path(hf_hub_download(name, "config.json")).read_text(encoding="utf-8"))
        try:
            files = get_safetensors_metadata(name).files_metadata.values()
        except (NotASafetensorsRepoError, SafetensorsParsingError):
            return config, {}
    return config, {
        tensor: Stored(dtype=info.dtype, shape=tuple(info.shape))
        for file in files
        for tensor, info in file.tensors.items()
    }


def _require_connection(name: str) -> None:
    """`ModelError` at once when the hub's address does not answer: huggingface_hub itself retries for half a minute."""
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        raise _unreachable(name, "HF_HUB_OFFLINE is set")
    if getproxies():
        return
    address = urlsplit(ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=PATIENCE).close()
    except OSError as problem:
        raise _unreachable(name, f"{ENDPOINT}: {problem.strerror or problem}") from None


def _unreachable(name: str, why: str) -> ModelError:
    near = nearest_known(name)
    return ModelError(
        f"the model hub cannot be reached for {name} ({why}), and its config.json is not in this machine's cache "
        f"({cache_folder(name)})",
        expected="the hub, a cached snapshot (HF_HOME), or a well-known id such as meta-llama/Llama-3.1-8B",
        cure="check the network, or give a folder that holds its config.json"
        + (f"; '{near}' is known without the hub" if near else ""),
    )


@contextmanager
def _told(name: str) -> Iterator[None]:
    """The hub's refusals as ours."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    # The base of all errors of the HTTP library that huggingface_hub was built on.
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined] # isort: skip

    try:
        with hub_refusals(name):
            yield
    except LocalEntryNotFoundError:
        raise _unreachable(name, "no connection") from None
    except EntryNotFoundError:
        raise ModelError(
            f"{name} has no config.json on the hub",
            expected="a model of transformers",
            cure="if it is an adapter, name its base model",
        ) from None
    except (HTTPError, OSError) as problem:
        raise _unreachable(name, (str(problem).splitlines() or [type(problem).__name__])[0]) from None
    except json.JSONDecodeError as problem:
        raise ModelError(f"config.json of {name} on the hub is not JSON: {problem}") from None

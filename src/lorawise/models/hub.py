"""A base model's files from the model hub, through huggingface_hub's own cache.

Only what a run reads is fetched: config, tokenizer, chat templates, and the one set of safetensors that
`from_pretrained` would take; not the pickles, other precisions or other engines' files that lie beside them.
"""

from pathlib import Path

from lorawise.base.errors import ModelError
from lorawise.base.files import storage_errors
from lorawise.base.hub import hub_refusals
from lorawise.models.files import EMBEDDED, Progress

PATTERNS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-[0-9]*-of-[0-9]*.safetensors",
)


def fetch_snapshot(name: str, *, progress: Progress) -> Path:
    """The folder of a hub id's newest snapshot; without the hub, the cached copy; else `ModelError`."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if not _is_cached(name):
        progress(f"fetching {name} from the model hub")
    try:
        with hub_refusals(name), storage_errors(Path("the model hub's cache (HF_HOME)")):
            return Path(snapshot_download(name, allow_patterns=list(PATTERNS)))
    except (LocalEntryNotFoundError, HfHubHTTPError) as problem:
        raise _unreachable(name, problem) from problem


def _is_cached(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError:
        return True  # fetch_snapshot refuses it next


def _unreachable(name: str, problem: Exception) -> ModelError:
    cure = "check the network, or give a folder or a .gguf file that holds the model"
    if name.lower().endswith("smollm2-135m-instruct"):
        cure += f"; `{EMBEDDED}` is this model from the package index, needing no hub"
    reason = (str(problem).splitlines() or [type(problem).__name__])[0]
    return ModelError(
        f"the model hub cannot be reached for {name}, and no copy of it is on this machine ({reason})",
        expected="the hub, or a cached snapshot (HF_HOME)",
        cure=cure,
    )

"""A frozen base model from its files, ready to be adapted.

What `open_model` gives: the model's own transformers class, every parameter with `requires_grad` False, in eval mode,
without KV cache (`config.use_cache` False; generation asks for one itself), and with the base's own dropout off:
every number in the config whose name contains "drop" is 0 when the class is built, and any dropout module left has
p = 0. So `train()` and `eval()` compute the same, and `train()` only matters to activation checkpointing.

For classification the head is transformers' `score` (hidden → labels, no bias): a fresh one drawn from `seed` in fp32
with the config's initializer_range, or the checkpoint's own if it has one of that size. It is frozen as all the rest;
a run trains it as a module to save.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lorawise.base.errors import ModelError
from lorawise.facts.kinds import quantised_with, refuse_other_kinds
from lorawise.models.dtypes import DtypeChoice, choose_dtype
from lorawise.models.files import ModelFiles as ModelFiles
from lorawise.models.files import resolve_model as resolve_model
from lorawise.models.quantised import loading_options, pack, refuse_fused_experts
from lorawise.models.quiet import quiet_transformers
from lorawise.runfile.schema import QUANTISED

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

HEAD = "score"  # the name of the classification head in transformers' decoder models


def open_model(
    files: ModelFiles,
    *,
    dtype: str = "auto",
    compute_dtype: str = "auto",
    double_quant: bool = True,
    device: str | torch.device = "cpu",
    labels: Sequence[str] | None = None,
    seed: int = 0,
) -> "PreTrainedModel":
    """The base model of `files`; with `labels`, as a classifier of them. `ModelError` names what is not supported.

    dtype          auto, bfloat16, float16, float32, nf4 or int8; `choose_dtype` tells what auto means here, and why
    compute_dtype  of a base in nf4 or int8
    double_quant   whether nf4 keeps its scales in 8 bits too
    labels         names in the order of their ids; at least two
    seed           of a fresh classification head
    """
    config = _config(files, labels)
    chosen = choose_dtype(files.folder, dtype, device, compute=compute_dtype)
    model, missing = _load(files, config, chosen, double_quant, torch.device(device), labels)
    fresh = {f"{HEAD}.weight"} if labels is not None else set()
    if lost := sorted(missing - fresh):
        raise ModelError(
            f"{files.source} lacks {len(lost)} tensors of a {type(model).__name__}: {', '.join(lost[:5])}",
            expected="a checkpoint of a decoder language model" + (" with a plain `score` head" if fresh else ""),
            cure="take the model itself, not its encoder or one part of it",
        )
    if missing:
        _draw_head(model.get_parameter(f"{HEAD}.weight"), config, seed)
    for module in model.modules():
        if isinstance(module, (torch.nn.Dropout, torch.nn.Dropout1d, torch.nn.Dropout2d, torch.nn.AlphaDropout)):
            module.p = 0.0
    if chosen.name in QUANTISED:
        pack(model, chosen.dtype)
    model.requires_grad_(False)
    model.train(False)
    return _moved(model, torch.device(device))


def default_device() -> str:
    """cuda where there is one, then mps, else cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _config(files: ModelFiles, labels: Sequence[str] | None) -> "PreTrainedConfig":
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    _refuse(files)
    try:
        with quiet_transformers():
            config: PreTrainedConfig = AutoConfig.from_pretrained(files.folder, trust_remote_code=False)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, StrictDataclassError) as problem:
        kind = files.config["model_type"]
        own = " and the code that comes with a model is never run" if "auto_map" in files.config else ""
        raise ModelError(
            f"{files.source}: transformers cannot open a model of type '{kind}'{own} ({problem})",
            expected="an architecture of the installed transformers",
            cure="pip install -U transformers, if a newer one knows it",
        ) from problem
    config.use_cache = False
    for name, value in _dropouts(config.to_dict()).items():
        setattr(config, name, type(value)(0))
    if labels is not None:
        if len(labels) < 2 or len(set(labels)) < len(labels):
            raise ModelError(f"labels {list(labels)}", expected="two or more different names")
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}
        config.pad_token_id = _pad_id(config)
    return config


def _refuse(files: ModelFiles) -> None:
    """Models that a decoder's adapter cannot mean, told apart from config.json alone."""
    if (files.folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{files.source} holds an adapter beside the base model, which transformers would put into it unasked",
            expected="a decoder language model in plain safetensors",
            cure="move adapter_config.json and adapter_model.safetensors into a folder of their own",
        )
    refuse_other_kinds(files.config, files.source)
    if method := quantised_with(files.config):
        raise ModelError(
            f"{files.source} is quantised with {method}",
            expected="a decoder language model in plain safetensors",
            cure="take the model's unquantised repository",
        )


def _load(
    files: ModelFiles,
    config: "PreTrainedConfig",
    chosen: DtypeChoice,
    double_quant: bool,
    device: torch.device,
    labels: Sequence[str] | None,
) -> tuple["PreTrainedModel", set[str]]:
    """The model and the names of parameters that its checkpoint does not hold. Global random state stays as it was."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    opener: Any = AutoModelForCausalLM if labels is None else AutoModelForSequenceClassification
    options: dict[str, Any] = {}
    if chosen.name in QUANTISED:
        options = loading_options(chosen.name, compute=chosen.dtype, double_quant=double_quant, device=device)
    try:
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            if options:
                refuse_fused_experts(opener, config, chosen.name)
            model, info = opener.from_pretrained(
                files.folder,
                config=config,
                dtype=chosen.dtype,
                **options,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # so that they can be named below
                output_loading_info=True,
            )
    except (ValueError, KeyError, TypeError, RuntimeError) as problem:
        task = "a language model" if labels is None else "a sequence classifier"
        raise ModelError(
            f"{files.source}: a model of type '{config.model_type}' cannot be opened as {task} ({problem})",
            expected="a decoder that transformers has this head for",
            cure="" if labels is None else "open it without labels and train the labels as generated text",
        ) from problem
    wrong = {str(name): shapes for name, *shapes in info["mismatched_keys"]}
    if labels is not None:
        wrong.pop(f"{HEAD}.weight", None)  # the checkpoint's own head tells other classes apart
    if wrong:
        told = [f"{name} {tuple(held)} is {tuple(meant)} there" for name, (held, meant) in sorted(wrong.items())]
        raise ModelError(
            f"{files.source}: {len(wrong)} tensors have other shapes than config.json means: {', '.join(told[:3])}",
            expected="weights and config.json of one model",
            cure="fetch the model again",
        )
    return model, set(info["missing_keys"]) | {str(name) for name, *_ in info["mismatched_keys"]}


def _dropouts(config: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: value
        for name, value in config.items()
        if "drop" in name and isinstance(value, (int, float)) and not isinstance(value, bool) and value
    }


def _pad_id(config: "PreTrainedConfig") -> int:
    """A token the classifier may skip at a row's end: the config's pad, else its (first) eos, else 0.

    transformers refuses batches without one; ids below 0 (older Llama's -1) or past the vocabulary count as none.
    """
    eos = config.eos_token_id
    for token in (config.pad_token_id, eos[0] if isinstance(eos, list) else eos):
        if isinstance(token, int) and 0 <= token < config.vocab_size:
            return token
    return 0


def _draw_head(weight: torch.Tensor, config: "PreTrainedConfig", seed: int) -> None:
    """N(0, initializer_range²), drawn in fp32 on the CPU, so that it is the same on every device and dtype."""
    spread = float(getattr(config, "initializer_range", 0.02))
    drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)) * spread
    with torch.no_grad():
        weight.copy_(drawn)


def _moved(model: "PreTrainedModel", device: torch.device) -> "PreTrainedModel":
    move: Any = model.to  # transformers wraps it, and its types with it
    move(device)
    return model

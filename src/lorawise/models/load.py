"""A base model with trained adapters over it, ready to answer: `lorawise.load`.

    loaded = lorawise.load("base", adapters={"legal": "runs/legal/adapter", "brief": "runs/brief/adapter"})
    loaded.generate("May I sublet?")                    # the first adapter is in use
    loaded.stack({"legal": 0.7, "brief": 0.3}).generate("May I sublet?")
    loaded.use(None).generate("May I sublet?")          # the base alone

Every adapter is resident and the base is never copied, so switching costs less than a millisecond.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from lorawise.base.errors import AdapterError, ModelError, nearest
from lorawise.base.findings import Finding
from lorawise.data.tokenizer import ChatTokenizer
from lorawise.lora.adapters import Adapters
from lorawise.lora.injection import attach, task_of
from lorawise.lora.weights import AdapterWeights
from lorawise.models.files import ModelFiles, Progress, resolve_model
from lorawise.models.generate import Sampling, generate
from lorawise.models.open import HEAD, default_device, open_model
from lorawise.runfile.schema import QUANTISED
from lorawise.store.provenance import Provenance
from lorawise.store.torch_form import load_adapter, read_provenance

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Loaded:
    """`findings` tells of adapters that were trained over another base than this one."""

    model: "PreTrainedModel"
    tokenizer: ChatTokenizer
    adapters: Adapters
    files: ModelFiles
    findings: tuple[Finding, ...] = ()

    def use(self, name: str | None) -> Self:
        """Answer with one adapter; None: the base alone."""
        self.adapters.use(name)
        return self

    def stack(self, weights: Mapping[str, float]) -> Self:
        """Answer with the weighted sum of several adapters' deltas."""
        self.adapters.stack(weights)
        return self

    def scale(self, name: str, factor: float) -> Self:
        """Multiply one adapter's scaling; 1.0 is what it was trained with."""
        self.adapters.set_scale(name, factor)
        return self

    def prompt(self, asked: str | Messages) -> list[int]:
        """The ids the model reads: text is one user message where there is a chat template, else plain text."""
        if isinstance(asked, str) and self.tokenizer.has_template:
            asked = [{"role": "user", "content": asked}]
        text = asked if isinstance(asked, str) else self.tokenizer.render(asked, add_generation_prompt=True)
        return [int(i) for i in self.tokenizer.encode(text, bos=True)[0]]  # BOS exactly once, as training sees it

    def generate(self, asked: str | Messages, *, max_new_tokens: int = 256, sampling: Sampling | None = None) -> str:
        """The answer to one question or conversation: greedy, or drawn as `sampling` says."""
        if task_of(self.model) != "CAUSAL_LM":
            raise ModelError(
                f"{type(self.model).__name__} classifies, it does not write", cure="call loaded.model(...).logits"
            )
        found = generate(
            self.model,
            [self.prompt(asked)],
            stop_ids=self.tokenizer.stop_ids,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
        )
        return self.tokenizer.decode(found[0], skip_special_tokens=True)


def load(
    model: str | Path,
    adapters: Mapping[str, str | Path] | None = None,
    *,
    dtype: str = "auto",
    device: str = "auto",
    template: str | None = None,
    progress: Progress | None = None,
) -> Loaded:
    """Open a base model and put trained adapters over it, the first of them in use.

    model      hub id, folder or .gguf file
    adapters   name → adapter folder, ours or PEFT's; all of one task (SEQ_CLS opens a classifier with its labels)
    dtype      auto, bfloat16, float16, float32, nf4 or int8; auto: nf4 or int8 where all adapters were trained over
               that, else the checkpoint's own.  device  auto, cpu, cuda, cuda:1, mps
    template   in place of the model's chat template: chatml, or the path of a .jinja file

    Raises `ModelError` or `AdapterError` with what was found, what was expected and the cure.
    """
    folders = {name: Path(folder).expanduser() for name, folder in (adapters or {}).items()}
    weights = {name: load_adapter(folder) for name, folder in folders.items()}
    histories = {name: read_provenance(folder, weights[name]) for name, folder in folders.items()}
    files = resolve_model(model, progress=progress)
    labels = _labels(weights, histories)
    chosen = default_device() if device == "auto" else _device(device)
    tokenizer = ChatTokenizer.open(files.folder, template=template)
    form, forms = _form(dtype, histories)
    opened = open_model(files, **form, device=chosen, labels=labels)
    return Loaded(
        model=opened,
        tokenizer=tokenizer,
        adapters=attach(opened, weights),
        files=files,
        findings=(*_other_bases(files, histories), *_other_templates(tokenizer, histories), *forms),
    )


def _form(dtype: str, histories: Mapping[str, Provenance | None]) -> tuple[dict[str, Any], list[Finding]]:
    """How to hold the base, as arguments of `open_model`, and what is worth knowing of it."""
    held = {name: history.base_held if history is not None else {} for name, history in histories.items()}
    forms = {name: str(each.get("dtype")) for name, each in held.items() if each.get("dtype") in QUANTISED}
    if not forms or dtype not in ("auto", *QUANTISED):
        return {"dtype": dtype}, []
    name, form = next(iter(forms.items()))
    if dtype == "auto" and len(forms) == len(held) and len(set(forms.values())) == 1:
        note = Finding(
            code="base-form",
            level="note",
            message=f"the base is opened in {form}, as adapter '{name}' was trained over it",
            cure="dtype: bfloat16 opens it whole",
        )
        return {"dtype": form, "double_quant": bool(held[name].get("double_quant", True))}, [note]
    if dtype != "auto":
        return {"dtype": dtype, "double_quant": all(bool(each.get("double_quant", True)) for each in held.values())}, []
    mixed = Finding(
        code="base-form",
        level="warning",
        message="adapters of different bases: " + ", ".join(f"'{n}' over {forms.get(n, 'a whole one')}" for n in held),
        cure="the base is opened whole; dtype: nf4 or int8 opens it as one of them saw it",
    )
    return {"dtype": dtype}, [mixed]


def _device(name: str) -> str:
    try:
        kind = torch.device(name).type
    except RuntimeError:
        raise ModelError(f"device '{name}' is not known", cure=nearest(name, ["auto", "cpu", "cuda", "mps"])) from None
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(kind, True):
        raise ModelError(f"device '{name}' is not there", expected=f"a machine and torch with {kind}", cure="use auto")
    return name


def _labels(
    weights: Mapping[str, AdapterWeights], histories: Mapping[str, Provenance | None]
) -> tuple[str, ...] | None:
    """What a classifier's adapters tell apart, by the provenance of the first or as LABEL_0, LABEL_1, …"""
    tasks = {name: each.task for name, each in weights.items()}
    if len(set(tasks.values())) > 1:
        raise AdapterError(
            "these adapters are of different tasks: " + ", ".join(f"{name} {task}" for name, task in tasks.items()),
            expected="one task a model",
            cure="load them over two models",
        )
    if "SEQ_CLS" not in tasks.values():
        return None
    first = next(iter(weights))
    head = weights[first].full.get(f"{HEAD}.weight")
    if head is None:
        raise AdapterError(f"adapter '{first}' classifies, but holds no {HEAD}.weight", cure="train it again")
    history = histories[first]
    told = history.run.get("labels") if history is not None else None
    if isinstance(told, list) and len(told) == len(head):
        return tuple(str(label) for label in told)
    return tuple(f"LABEL_{i}" for i in range(len(head)))


def _other_bases(files: ModelFiles, histories: Mapping[str, Provenance | None]) -> list[Finding]:
    return [
        Finding(
            code="other-base",
            level="warning",
            message=f"adapter '{name}' was trained over other weights than {files.source}: {history.base}",
            cure="answers may differ from those of the run: verify, or open the base it was trained over",
            path=name,
        )
        for name, history in histories.items()
        if history is not None and history.base_digest and history.base_digest != files.digest
    ]


def _other_templates(tokenizer: ChatTokenizer, histories: Mapping[str, Provenance | None]) -> list[Finding]:
    return [
        Finding(
            code="other-template",
            level="warning",
            message=f"adapter '{name}' was trained with another chat template than the one in use",
            cure=f"name the template of its run, {_template_of(history)}: a model asked in other words answers worse",
            path=name,
        )
        for name, history in histories.items()
        if history is not None and history.template_digest not in ("", tokenizer.template_digest)
    ]


def _template_of(history: Provenance) -> str:
    settings = history.run.get("settings")
    data = settings.get("data") if isinstance(settings, Mapping) else None
    named = data.get("template") if isinstance(data, Mapping) else None
    return str(named) if named else "the model's own at that time"

'''Ollama: a Modelfile over the base's GGUF file with the adapter merged into it.

    FROM ./model.gguf
    TEMPLATE """…"""                  where the model's chat template is of a known form (`chat_forms`)
    SYSTEM """…"""                    where that template brings one of its own
    PARAMETER stop "<|im_end|>"

The template is the run's own, told by its digest: the file's, or the one that the run named. Merged, not ADAPTER,
which recent Ollama refuses (EVIDENCE 4). Without TEMPLATE Ollama chooses one itself by the tokenizer.chat_template in
the file, which the merge keeps.
'''

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorawise.base.files import atomic_folder, digest_text, refuse_full_disk
from lorawise.base.findings import Finding
from lorawise.data.template import MAX_SOURCE, known_templates
from lorawise.exporting.chat_forms import EOS, Known, known_form
from lorawise.exporting.exporters import EXPORTERS, Exported, Options
from lorawise.exporting.gguf_merged import MODEL, Merging, base_file
from lorawise.store.algebra.result import Source

MODELFILE = "Modelfile"


@EXPORTERS.register("ollama")
def to_ollama(source: Source, folder: Path, options: Options) -> Exported:
    """As `to_merged_gguf`, with a Modelfile; a template of no known form is left to Ollama, and that is said."""
    with base_file(source, options) as path:
        merging = Merging.of(source, path, options)
        refuse_full_disk(folder, merging.nbytes)
        template, own = _template(source, merging.header.settings.get("tokenizer.chat_template"))
        known = known_form(template) if template else None
        text = "".join(_modelfile(known, _eos(path) if known is not None else ""))
        with atomic_folder(folder) as scratch:
            layers = merging.write(scratch)
            (scratch / MODELFILE).write_text(text, encoding="utf-8")
    done = merging.exported(folder, layers)
    return replace(
        done,
        files=(MODELFILE, *done.files),
        flags=(f"ollama create NAME -f {folder / MODELFILE}",),
        findings=(*done.findings, *_told(template, known, own=own)),
    )


def _modelfile(known: Known | None, eos: str) -> Iterator[str]:
    yield f"FROM ./{MODEL}\n"
    if known is None:
        return
    yield f'TEMPLATE """{known.form.go(eos)}"""\n'
    if known.system:
        yield f'SYSTEM """{known.system}"""\n'
    for stop in dict.fromkeys((known.form.stop.replace(EOS, eos), eos)):
        if stop:
            yield f'PARAMETER stop "{stop}"\n'


def _eos(path: Path) -> str:
    """The text of the end-of-text token; empty where the file names none."""
    from gguf import GGUFReader

    fields: Any = GGUFReader(path).fields
    tokens, eos = fields.get("tokenizer.ggml.tokens"), fields.get("tokenizer.ggml.eos_token_id")
    if tokens is None or eos is None or not 0 <= int(eos.contents()) < len(tokens.data):
        return ""
    return str(tokens.contents(int(eos.contents())))


def _template(source: Source, held: object) -> tuple[str, bool]:
    """The chat template to ask with, and whether it is known to be the run's."""
    base = held if isinstance(held, str) else ""
    history = source.history
    if history is None or not history.template_digest:
        return base, True
    for template in (base, *_named(history.run)):
        if digest_text("default", template) == history.template_digest:
            return template, True
    return base, False


def _named(run: Mapping[str, object]) -> Iterator[str]:
    """The template that a run's settings name: one of ours, or a .jinja file that is still there."""
    settings: Any = run.get("settings")
    data = settings.get("data") if isinstance(settings, Mapping) else None
    name = data.get("template") if isinstance(data, Mapping) else None
    if not isinstance(name, str):
        return
    if name in known_templates:
        yield known_templates[name]
    elif name.endswith(".jinja") and Path(name).is_file() and Path(name).stat().st_size <= MAX_SOURCE:
        with contextlib.suppress(UnicodeDecodeError):
            yield Path(name).read_text(encoding="utf-8")


def _told(template: str, known: Known | None, *, own: bool) -> Iterator[Finding]:
    if not own:
        yield Finding(
            code="other-template",
            level="warning",
            message="the adapter was trained with another chat template than the one in the GGUF file",
            cure="write the run's own into the Modelfile: a model asked in other words answers worse",
        )
    if known is None:
        yield Finding(
            code="template-left-out",
            level="note",
            message="the chat template is of no form known here" if template else "the GGUF file has no chat template",
            cure="Ollama chooses one itself: read it with `ollama show NAME --template`, and compare",
        )

"""A model's tokenizer and chat template from its folder, through the `tokenizers` library alone.

    tokenizer.json                     the vocabulary and how text becomes ids            (t,) int32, offsets (t, 2)
    tokenizer_config.json, special_tokens_map.json      bos, eos, pad and other special tokens by name
    chat_template.jinja, chat_template in the config, additional_chat_templates/*.jinja    templates by name
    generation_config.json             the ids a generation stops at, often several

BOS stands once at the start of a text if the tokenizer puts it there or the template prints it, never twice.
Padding is only filler: batches carry their own masks, so nothing is ever decided by comparing ids with `pad_id`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from lorawise.base.errors import DataError
from lorawise.base.files import digest_text, sha256_file
from lorawise.data.template import ChatTemplate, Message, known_templates

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, kw_only=True, eq=False)
class ChatTokenizer:
    """Text ↔ ids, and messages → text. Open one with `ChatTokenizer.open(folder)`."""

    tokenizer: Tokenizer
    templates: Mapping[str, ChatTemplate]
    special_tokens: Mapping[str, str]  # by name, as templates read them: bos_token, eos_token, ...
    stop_ids: tuple[int, ...]  # eos of the tokenizer and of the generation config
    adds_bos: bool
    digest: str
    folder: Path = field(default=Path())

    @classmethod
    def open(cls, folder: Path, *, template: str | None = None, now: datetime | None = None) -> Self:
        """Read a model's folder. `template` replaces its chat template: a known name (chatml) or the path of a .jinja
        file. `now` is the date templates print, today's when not given."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise DataError(
                f"no tokenizer.json in {folder}",
                expected="the fast tokenizer saved with the model",
                cure="save it there with transformers: AutoTokenizer.from_pretrained(model).save_pretrained(folder)",
            )
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as problem:  # the library raises nothing narrower
            raise DataError(f"{path} cannot be read: {problem}", cure="fetch the model's tokenizer again") from problem
        tokenizer.no_truncation()
        tokenizer.no_padding()
        config = _json(folder / "tokenizer_config.json")
        special = _special_tokens(config, _json(folder / "special_tokens_map.json"))
        templates = _templates(folder, config, template, now)
        bos = tokenizer.token_to_id(special.get("bos_token", ""))
        start = tokenizer.encode("").ids[:1]
        adds_bos = bos is not None and start == [bos] and config.get("add_bos_token") is not False
        stops = [tokenizer.token_to_id(special.get("eos_token", "")), *_generation_stops(folder)]
        return cls(
            tokenizer=tokenizer,
            templates=templates,
            special_tokens=special,
            stop_ids=tuple(dict.fromkeys(i for i in stops if i is not None and i < tokenizer.get_vocab_size())),
            adds_bos=adds_bos,
            digest=digest_text(sha256_file(path), json.dumps([special, adds_bos, stops], sort_keys=True)),
            folder=folder,
        )

    @cached_property
    def bos_id(self) -> int | None:
        return self._id("bos_token")

    @cached_property
    def eos_id(self) -> int | None:
        """The tokenizer's eos, else the first id a generation stops at."""
        own = self._id("eos_token")
        return own if own is not None else next(iter(self.stop_ids), None)

    @cached_property
    def pad_id(self) -> int:
        """The filler of padded rows: the tokenizer's pad, else eos, else 0. Masks never follow from it."""
        return next((i for i in (self._id("pad_token"), self.eos_id) if i is not None), 0)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        return frozenset(i for i, token in self.tokenizer.get_added_tokens_decoder().items() if token.special)

    @cached_property
    def special_words(self) -> frozenset[str]:
        """The special tokens as they are written; those that a tokenizer adds as ordinary words are none."""
        return frozenset(token.content for token in self.tokenizer.get_added_tokens_decoder().values() if token.special)

    @property
    def vocabulary(self) -> int:
        return int(self.tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def has_template(self) -> bool:
        return bool(self.templates)

    @cached_property
    def template_digest(self) -> str:
        """Of all templates as they are written; empty without one."""
        parts = [part for name in sorted(self.templates) for part in (name, self.templates[name].source)]
        return digest_text(*parts) if parts else ""

    @cached_property
    def rendering_digest(self) -> str:
        """Of all templates and of the date they print, if they do: what text the same messages give."""
        return digest_text(*(part for name in sorted(self.templates) for part in (name, self.templates[name].digest)))

    def encode(self, text: str, *, bos: bool = False) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """ids (t,) and the characters each token stands for (t, 2); special tokens written in the text are theirs.

        With `bos` the text begins with BOS exactly once if this tokenizer uses one on plain text.
        """
        try:
            return self.encode_batch([text], bos=bos)[0]
        except TypeError:  # what the library says of half a surrogate pair, and of what is no text
            raise DataError(
                "the text cannot be written as UTF-8", expected="text without half surrogate pairs"
            ) from None

    def encode_batch(
        self, texts: Sequence[str], *, bos: bool = False
    ) -> list[tuple[NDArray[np.int32], NDArray[np.int64]]]:
        return [self._arrays(e, bos=bos) for e in self.tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int] | NDArray[np.integer[Any]], *, skip_special_tokens: bool = False) -> str:
        return str(self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens))

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        """Messages as the text the model reads. `DataError` without a chat template, or when it refuses."""
        template = self.template(with_tools=tools is not None)
        if self._reads_parts:
            messages = [_in_parts(message) for message in messages]
        return template.render(
            messages, tools=tools, add_generation_prompt=add_generation_prompt, variables=self._variables
        )

    def template(self, *, with_tools: bool = False) -> ChatTemplate:
        if not self.templates:
            raise DataError(
                f"the model in {self.folder} has no chat template, and the rows are messages",
                expected="a model made for chat, or rows that need no template",
                cure="write the rows as prompt/completion, or name a template (chatml, or a .jinja file)",
            )
        if with_tools and "tool_use" in self.templates:
            return self.templates["tool_use"]
        if "default" not in self.templates:
            raise DataError(
                f"the model in {self.folder} has chat templates {', '.join(sorted(self.templates))}, but no default",
                cure="name one: data.template: path/to/template.jinja",
            )
        return self.templates["default"]

    @property
    def _variables(self) -> dict[str, object]:
        return {**self.special_tokens, "starts_with_bos": self.adds_bos}

    @cached_property
    def _reads_parts(self) -> bool:
        """Templates of vision models print content only when it is a list of parts, and drop a string in silence."""
        probe, text = {"role": "user", "content": "lorawise"}, ""
        for message in (probe, _in_parts(probe)):
            try:
                text = self.template().render([message], variables=self._variables)
            except DataError:
                continue
            if "lorawise" in text:
                return message is not probe
        return False

    def _id(self, name: str) -> int | None:
        found: int | None = self.tokenizer.token_to_id(self.special_tokens.get(name, ""))
        return found

    def _arrays(self, encoding: Encoding, *, bos: bool) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        ids = np.array(encoding.ids, dtype=np.int32)
        offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        if bos and self.adds_bos and (len(ids) == 0 or ids[0] != self.bos_id):
            ids = np.concatenate([np.array([self.bos_id], dtype=np.int32), ids])
            offsets = np.concatenate([np.zeros((1, 2), dtype=np.int64), offsets])
        return ids, offsets


def _in_parts(message: Message) -> Message:
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def _templates(
    folder: Path, config: Mapping[str, Any], named: str | None, now: datetime | None
) -> dict[str, ChatTemplate]:
    """Templates by name. Files beside the tokenizer come before the config's, as in transformers."""
    if named is not None:
        if named in known_templates:
            return {"default": ChatTemplate(known_templates[named], where=f"template {named}", now=now)}
        path = Path(named)
        if not path.is_file():
            raise DataError(f"no chat template '{named}'", expected=f"a file, or one of: {', '.join(known_templates)}")
        return {"default": ChatTemplate(_text(path), where=str(path), now=now)}
    files = {"default": folder / "chat_template.jinja"}
    files |= {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    sources = {name: (_text(path), str(path)) for name, path in files.items() if path.is_file()}
    if not sources:
        written, where = config.get("chat_template"), f"chat_template of {folder / 'tokenizer_config.json'}"
        if isinstance(written, str):
            sources = {"default": (written, where)}
        elif isinstance(written, Mapping):
            sources = {str(name): (str(source), where) for name, source in written.items()}
        elif isinstance(written, list):
            sources = {str(entry["name"]): (str(entry["template"]), where) for entry in written}
    return {name: ChatTemplate(source, where=where, now=now) for name, (source, where) in sources.items()}


def _special_tokens(config: Mapping[str, Any], named: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _NAMED:
        entry = config.get(name, named.get(name))
        if isinstance(entry, Mapping):
            entry = entry.get("content")
        if isinstance(entry, str):
            found[name] = entry
    return found


def _generation_stops(folder: Path) -> list[int]:
    stops = _json(folder / "generation_config.json").get("eos_token_id")
    return [i for i in (stops if isinstance(stops, list) else [stops]) if isinstance(i, int)]


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(_text(path))
    except json.JSONDecodeError as problem:
        raise DataError(f"{path} is not JSON: {problem}", cure="fetch the model's tokenizer again") from problem
    return value if isinstance(value, dict) else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as problem:
        raise DataError(f"{path} is not UTF-8: {problem}") from problem

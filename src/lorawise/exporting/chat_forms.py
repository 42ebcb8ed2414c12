"""Chat templates as Ollama's: Go templates of the few forms that most models use, known by what they print.

    form      a turn of role r                                            ends a turn
    chatml    <|im_start|>r⏎ content <|im_end|>⏎                          <|im_end|>
    llama3    <|start_header_id|>r<|end_header_id|>⏎⏎ content <|eot_id|>   <|eot_id|>
    phi3      <|r|>⏎ content <|end|>⏎                                     <|end|>
    zephyr    <|r|>⏎ content </s>⏎                                        </s>
    gemma     <start_of_turn>r⏎ content <end_of_turn>⏎                    <end_of_turn>; system text opens turn 1

A Jinja template is not translated: it is rendered on a few conversations, and a form is taken only where it prints the
same. A system text that the template brings of its own is found that way too. BOS is left out: Ollama adds it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lorawise.base.errors import DataError
from lorawise.data.template import ChatTemplate

BOS, EOS = "\ue000", "\ue001"  # stand for the model's own in what is rendered
_SYSTEM = {"role": "system", "content": "You speak briefly."}
_TURNS = (
    {"role": "user", "content": "Is it raining?"},
    {"role": "assistant", "content": "<think>Look outside.</think>Yes."},
    {"role": "user", "content": "And now?"},
)
_GO_TURN = (
    '%s{{ .Content }}{{ if not (and $last (eq .Role "assistant")) }}%s{{ end }}'
    '{{ if and $last (ne .Role "assistant") }}%s{{ end }}'
)
_GO_TURNS = """{{- range $i, $_ := .Messages }}{{- $last := eq (len (slice $.Messages $i)) 1 -}}
%s
{{- end }}"""


@dataclass(frozen=True, kw_only=True)
class ChatForm:
    """`opening` and `closing` of a turn hold {role}; `names` are the roles that it calls otherwise."""

    name: str
    opening: str
    closing: str
    stop: str
    names: Mapping[str, str] = field(default_factory=dict)
    system_turn: bool = True

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The conversation, with the opening of an answer after it."""
        system, turns = "", list(messages)
        if not self.system_turn and turns[0]["role"] == "system":
            system = f"{turns.pop(0)['content']}\n\n"
        text = ""
        for i, turn in enumerate(turns):
            text += self._open(turn["role"]) + ("" if i else system) + turn["content"] + self.closing
        return text + self._open("assistant")

    def go(self, eos: str) -> str:
        """The same for Ollama; an answer that is last is left open, for it to go on."""
        opening, closing = "{{ .Role }}", self.closing.replace(EOS, eos)
        if self.system_turn:
            opening = self.opening.format(role=opening)
        else:
            ask = self._open("user") + "{{ if and $.System (le $i 1) }}{{ $.System }}\n\n{{ end }}"
            opening = f'{{{{ if eq .Role "user" }}}}{ask}{{{{ else }}}}{self._open("assistant")}{{{{ end }}}}'
        turn = _GO_TURN % (opening, closing, self._open("assistant"))
        return _GO_TURNS % (turn if self.system_turn else f'{{{{- if ne .Role "system" }}}}{turn}{{{{ end }}}}')

    def _open(self, role: str) -> str:
        return self.opening.format(role=self.names.get(role, role))


FORMS = (
    ChatForm(name="chatml", opening="<|im_start|>{role}\n", closing="<|im_end|>\n", stop="<|im_end|>"),
    ChatForm(
        name="llama3",
        opening="<|start_header_id|>{role}<|end_header_id|>\n\n",
        closing="<|eot_id|>",
        stop="<|eot_id|>",
    ),
    ChatForm(name="phi3", opening="<|{role}|>\n", closing="<|end|>\n", stop="<|end|>"),
    ChatForm(name="zephyr", opening="<|{role}|>\n", closing=f"{EOS}\n", stop=EOS),
    ChatForm(
        name="gemma",
        opening="<start_of_turn>{role}\n",
        closing="<end_of_turn>\n",
        stop="<end_of_turn>",
        names={"assistant": "model"},
        system_turn=False,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Known:
    """A template's form, and the system text that it brings where the conversation has none."""

    form: ChatForm
    system: str = ""


def known_form(template: str) -> Known | None:
    """The form that prints what `template` prints; None where none does."""
    plain, led = _rendered(template, _TURNS), _rendered(template, (_SYSTEM, *_TURNS))
    if plain is None:
        return None
    for form in FORMS:
        if led is not None and led != form.render((_SYSTEM, *_TURNS)):
            continue
        if plain == form.render(_TURNS):
            return Known(form=form)
        system = _brought(form, plain) if led is not None else None
        if system is not None:
            return Known(form=form, system=system)
    return None


def _brought(form: ChatForm, plain: str) -> str | None:
    before, _, after = form.render(({"role": "system", "content": BOS}, *_TURNS)).partition(BOS)
    if plain.startswith(before) and plain.endswith(after) and len(plain) > len(before) + len(after):
        return plain[len(before) : len(plain) - len(after)]
    return None


def _rendered(template: str, messages: Sequence[Mapping[str, str]]) -> str | None:
    """None where the template refuses these messages."""
    try:
        text = ChatTemplate(template).render(
            messages, add_generation_prompt=True, variables={"bos_token": BOS, "eos_token": EOS}
        )
    except DataError:
        return None
    return text.removeprefix(BOS)

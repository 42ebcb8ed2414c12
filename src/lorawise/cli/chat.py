"""`lorawise chat`: talk to a base model and its adapters, switched and scaled while talking.

/use NAME   /base   /scale 0.5   /stack A=0.7 B=0.3   /compare [QUESTION]   /new   /quit
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from lorawise.base.errors import LorawiseError, UsageError, nearest
from lorawise.cli.named import BASE, adapters_of, stack_name, stack_of
from lorawise.cli.outcome import Json, Outcome, Template
from lorawise.report.columns import side_by_side

if TYPE_CHECKING:
    from lorawise.models.load import Loaded

COMMANDS = {
    "/use": "NAME         answer with this adapter",
    "/base": "             answer as the base alone",
    "/scale": "[NAME] 0.5   multiply an adapter's scaling; 1 is as trained",
    "/stack": "A=0.7 B=0.3  answer with a weighted sum of adapters",
    "/compare": "[QUESTION]   base and adapters side by side, on the last question or this",
    "/new": "             forget the conversation",
    "/quit": "             leave",
}


def chat(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, folder or .gguf file.")],
    adapter: Annotated[
        list[str] | None, typer.Option(metavar="NAME=DIR", help="An adapter and what to call it, or @NAME. Repeatable.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Longest answer.")] = 512,
    dtype: Annotated[
        str, typer.Option(metavar="DTYPE", help="auto, bfloat16, float16, float32, nf4 or int8.")
    ] = "auto",
    template: Template = None,
    as_json: Json = False,
) -> Outcome:
    """Talk to a model, adapters switched while talking.

    \b
    lorawise chat ./base --adapter legal=runs/legal/adapter --adapter brief=runs/brief/adapter

    Then: /use NAME, /base, /scale 0.5, /stack legal=0.7 brief=0.3, /compare, /new, /quit.
    """
    from lorawise.models.load import load

    loaded = load(model, adapters_of(adapter or []), dtype=dtype, template=template)
    for finding in loaded.findings:
        typer.echo(f"{finding.level}: {finding}", err=True)
    talk = Talk(loaded=loaded, max_tokens=max_tokens)
    typer.echo("\n".join(f"{name:<9}{what}" for name, what in COMMANDS.items()), err=True)
    while (line := _ask(talk.voice)) is not None:
        try:
            reply = talk.hear(line)
        except LorawiseError as problem:
            typer.echo(str(problem), err=True)
            continue
        if reply is None:
            break
        if not as_json:
            typer.echo(reply)
    return Outcome(document={"turns": talk.turns, "compared": talk.compared})


def _ask(voice: str) -> str | None:
    try:
        typer.echo(f"{voice}> ", nl=False, err=True)
        return input().encode("utf-8", "replace").decode()  # bytes that are no text came as half characters
    except UnicodeDecodeError:
        return ""
    except (EOFError, RuntimeError):  # RuntimeError: stdin was closed by the caller
        return None


@dataclass
class Talk:
    """One conversation: what was said, and which adapter answers.

    voice     who answers: base, an adapter, or a stack as it was written
    asked     the last question with what was said before it, for /compare
    compared  each question that all were asked, and what each answered
    """

    loaded: "Loaded"
    max_tokens: int
    voice: str = ""
    messages: list[Mapping[str, str]] = field(default_factory=list)
    asked: list[Mapping[str, str]] = field(default_factory=list)
    turns: list[dict[str, str]] = field(default_factory=list)
    compared: list[dict[str, object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.voice = self.voice or next(iter(self.loaded.adapters.names), BASE)

    def hear(self, line: str) -> str | None:
        """The answer to a line or the echo of a command; None to leave."""
        word, _, rest = line.strip().partition(" ")
        if not word:
            return ""
        if word in ("/quit", "/exit"):
            return None
        if not word.startswith("/"):
            return self._answer(line)
        doing: dict[str, Callable[[str], str]] = {
            "/use": self._use,
            "/base": self._base,
            "/scale": self._scale,
            "/stack": self._stack,
            "/compare": self._compare,
            "/new": self._new,
        }
        if word not in doing:
            raise UsageError(f"there is no command {word}", cure=nearest(word, list(COMMANDS)))
        return doing[word](rest.strip())

    def _answer(self, line: str) -> str:
        self.asked = [*self.messages, {"role": "user", "content": line}]
        reply = self._generate(self.asked)
        self.messages = [*self.asked, {"role": "assistant", "content": reply}]
        self.turns.append({"voice": self.voice, "user": line, "assistant": reply})
        return reply

    def _generate(self, asked: list[Mapping[str, str]]) -> str:
        if self.loaded.tokenizer.has_template:
            return self.loaded.generate(asked, max_new_tokens=self.max_tokens)
        return self.loaded.generate(asked[-1]["content"], max_new_tokens=self.max_tokens)

    def _use(self, name: str) -> str:
        self.loaded.use(name)
        self.voice = name
        return f"({name} answers)"

    def _base(self, _: str) -> str:
        self.loaded.use(None)
        self.voice = BASE
        return "(the base alone answers)"

    def _scale(self, text: str) -> str:
        name, _, factor = text.rpartition(" ")
        name = name.strip() or self.voice
        value = _number(factor)
        if name not in self.loaded.adapters.names:
            raise UsageError("no single adapter is in use", cure="name one, /scale NAME 0.5, or /use NAME first")
        self.loaded.scale(name, value)
        return f"({name} at {value:g} of its scaling)"

    def _stack(self, text: str) -> str:
        weights = stack_of(text)
        self.loaded.stack(weights)
        self.voice = stack_name(weights)
        return f"({self.voice} answers)"

    def _compare(self, question: str) -> str:
        """Base and adapters, and the stack in use, on one question; the conversation stays where it was."""
        asked = [*self.messages, {"role": "user", "content": question}] if question else self.asked
        if not asked:
            raise UsageError("nothing was asked yet", cure="ask something, or write it: /compare QUESTION")
        voices: list[str | None] = [None, *self.loaded.adapters.names]
        replies = {name or BASE: self._generate_as(name, asked) for name in voices}
        if self.voice not in replies:
            replies[self.voice] = self._generate(asked)
        self.compared.append({"user": asked[-1]["content"], "answers": replies})
        return side_by_side(replies, shutil.get_terminal_size().columns)

    def _generate_as(self, name: str | None, asked: list[Mapping[str, str]]) -> str:
        kept = self.loaded.adapters.routing.route
        self.loaded.use(name)
        try:
            return self._generate(asked)
        finally:
            self.loaded.adapters.routing.route = kept

    def _new(self, _: str) -> str:
        self.messages = []
        return "(forgotten)"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"'{text}' is not a number", expected="such as 0.5") from None

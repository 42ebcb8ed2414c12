"""What lorawise knows of another tool's config: how to recognise one, what its keys mean, what it leaves to defaults.

    Tree ─ Tool.read ─▶ Setting ─ Tool.write ─▶ text in the tool's own terms

Field names are facts of the tools' own documentation; a key that is not in a table is left alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lorawise.base.registry import Registry
from lorawise.checking.draft import Draft
from lorawise.checking.setting import Setting
from lorawise.checking.tree import Tree

Recognise = Callable[[Tree], bool]
Finish = Callable[[Tree, Draft], None]
Write = Callable[[Setting], str]


def _always(_: Tree) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class Tool:
    """adapts    whether a file of this tool trains a LoRA adapter; full fine-tuning has nothing to be read here
    keys      the tool's dotted key → our field
    defaults  of our fields, where the file is silent
    finish    what a table cannot say (several keys that make one field)
    write     a setting in this tool's terms, scaling and learning rate unchanged; None where it has no config
    """

    name: str
    title: str
    recognises: Recognise
    adapts: Recognise = _always
    keys: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    finish: Finish | None = None
    write: Write | None = None

    def read(self, tree: Tree, path: str) -> Setting:
        draft = Draft(tool=self.name, path=path)
        for key, name in self.keys.items():
            if key in tree.lines and (value := tree.get(key)) is not None:
                draft.put(name, value, tree.lines[key])
        if self.finish is not None:
            self.finish(tree, draft)
        for name, value in self.defaults.items():
            draft.default(name, value)
        return draft.setting()


TOOLS: Registry[Tool] = Registry("tool")


def add(tool: Tool) -> Tool:
    return TOOLS.register(tool.name)(tool)


def says(tree: Tree, *keys: str) -> bool:
    """Whether any of the keys is there with a value."""
    return any(tree.get(key) is not None for key in keys)

"""`lorawise adapter add|list|tag|rm`: the local store."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorawise.cli.adapter import Store
from lorawise.cli.adapter import adapter as adapter
from lorawise.cli.outcome import Json, Outcome

if TYPE_CHECKING:
    from lorawise.store.shelf import Kept


@adapter.command("add")
def add(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An adapter, ours or PEFT's.")],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="What to call it; else the folder's name.")] = "",
    store: Store = None,
    as_json: Json = False,
) -> Outcome:
    """Keep a copy of an adapter under a name; @NAME then stands for it.

    \b
    lorawise adapter add runs/first/adapter --name first
    """
    from lorawise.store.algebra.result import Source
    from lorawise.store.shelf import Shelf

    folder = folder.expanduser()
    shelf = Shelf.at(store)
    kept = shelf.add(Source.open(folder), name or folder.resolve().name)
    return _one(kept, shelf.root / "objects" / kept.digest)


@adapter.command("list")
def list_adapters(store: Store = None, as_json: Json = False) -> Outcome:
    """What the store keeps."""
    from lorawise.report import words
    from lorawise.report.adapter_tables import table
    from lorawise.report.metrics import plain
    from lorawise.store.shelf import Shelf

    shelf = Shelf.at(store)
    kept = shelf.list()
    rows = [["name", "digest", "r", "scaling", "parameters", "size", "base"]]
    for each in kept:
        cells = [each.digest[:12], str(each.r), f"{each.scaling:g}", words.count(each.parameters)]
        rows.append([", ".join(each.names), *cells, words.size(each.bytes), words.short(each.base, 60)])
    told = "\n".join(table(rows)) if kept else f"the store at {shelf.root} is empty"
    return Outcome(document={"path": str(shelf.root), "error": 0.0, "adapters": plain(kept)}, table=told)


@adapter.command("tag")
def tag(
    found: Annotated[str, typer.Argument(metavar="NAME|DIGEST")],
    name: Annotated[str, typer.Argument(metavar="NEW")],
    move: Annotated[bool, typer.Option("--move", help="Even if NEW means another adapter now.")] = False,
    store: Store = None,
    as_json: Json = False,
) -> Outcome:
    """Another name for an adapter of the store."""
    from lorawise.store.shelf import Shelf

    shelf = Shelf.at(store)
    kept = shelf.tag(found.removeprefix("@"), name, move=move)
    return _one(kept, shelf.root / "objects" / kept.digest)


@adapter.command("rm")
def remove(name: Annotated[str, typer.Argument(metavar="NAME")], store: Store = None, as_json: Json = False) -> Outcome:
    """Forget a name; the adapter goes with its last name."""
    from lorawise.store.shelf import Shelf

    shelf = Shelf.at(store)
    digest, gone = shelf.remove(name.removeprefix("@"))
    what = "the adapter is gone" if gone else "the adapter has other names"
    document = {"path": str(shelf.root), "error": 0.0, "digest": digest, "removed": gone}
    return Outcome(document=document, table=f"{name} is forgotten; {what}")


def _one(kept: "Kept", folder: Path) -> Outcome:
    document = {"path": str(folder), "error": 0.0, "digest": kept.digest, "names": list(kept.names)}
    return Outcome(document=document, table=f"{kept.digest[:12]}  {', '.join(kept.names)}")

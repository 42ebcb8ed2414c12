"""`lorawise adapter`: adapter algebra on files alone; no base model is opened and torch is not loaded."""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorawise.cli.outcome import Json, Outcome

if TYPE_CHECKING:
    from lorawise.lora.weights import StoredAdapter
    from lorawise.store.algebra.factors import Factors
    from lorawise.store.algebra.result import Source

adapter = typer.Typer(
    name="adapter",
    help="Inspect, compare, rescale, resize, combine and keep adapters: files alone, no base model.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
One = Annotated[str, typer.Argument(metavar="ADAPTER", help="A folder, or @NAME from the local store.")]
Out = Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="A new folder for the result.")]
Dtype = Annotated[
    str, typer.Option(metavar="DTYPE", help="auto, float32, bfloat16, float16 or float64; auto loses nothing.")
]
Store = Annotated[Path | None, typer.Option("--store", metavar="DIR", help="The local store.", show_default=False)]
All = Annotated[bool, typer.Option("--all", help="Every module, not only the strongest.")]


@adapter.command("show")
def show(
    source: One,
    base: Annotated[str | None, typer.Option(metavar="MODEL", help="Folder or hub id: norms against it.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the layer × module map as a page.")] = None,
    all_layers: All = False,
    store: Store = None,
    as_json: Json = False,
) -> Outcome:
    """Scaling, targets, ranks, and what each layer does.

    \b
    lorawise adapter show runs/first/adapter --html map.html
    """
    from lorawise.report import adapter_tables
    from lorawise.report.adapter_page import write_map
    from lorawise.report.metrics import plain
    from lorawise.store.algebra.inspect import inspect

    opened = open_source(source, store)
    shown = inspect(opened, None if base is None else _base_folder(base))
    if html is not None:
        write_map(shown, html)
    config = opened.adapter.config
    document = {
        "path": str(opened.folder),
        "error": 0.0,
        "base": opened.base,
        "digest": opened.digest,
        "r": config.r,
        "alpha": config.alpha,
        "scaling": config.scaling,
        "rslora": config.rslora,
        "parameters": shown.parameters,
        "norm": shown.norm,
        "layers": plain(shown.layers),
        "full": {name: list(shape) for name, shape in shown.full.items()},
        "provenance": None if opened.history is None else opened.history.to_json(),
        "html": None if html is None else str(html),
    }
    prose = "" if html is None else f"the map is in {html}"
    return Outcome(document=document, table=adapter_tables.inspection(shown, all_layers=all_layers), prose=prose)


@adapter.command("diff")
def diff(
    one: Annotated[str, typer.Argument(metavar="A")],
    other: Annotated[str, typer.Argument(metavar="B")],
    all_layers: All = False,
    store: Store = None,
    as_json: Json = False,
) -> Outcome:
    """How far apart two adapters are, and how they would disturb each other when stacked.

    \b
    lorawise adapter diff runs/first/adapter runs/second/adapter
    """
    from lorawise.report import adapter_tables
    from lorawise.report.metrics import plain
    from lorawise.store.algebra.diff import diff as compare

    found = compare(open_source(one, store).adapter, open_source(other, store).adapter)
    document = {
        "path": one,
        "error": found.distance,
        "cosine": found.cosine,
        "interference": list(found.interference),
        "layers": plain(found.layers),
    }
    return Outcome(document=document, table=adapter_tables.difference(found, (one, other), all_layers=all_layers))


@adapter.command("rescale")
def rescale(
    source: One,
    out: Out,
    scaling: Annotated[float | None, typer.Option(metavar="S", help="The scaling it shall have.")] = None,
    by: Annotated[float | None, typer.Option(metavar="K", help="Or the factor to multiply it by.")] = None,
    store: Store = None,
    as_json: Json = False,
) -> Outcome:
    """Make an adapter stronger or weaker, exactly: its numbers stay, alpha changes.

    \b
    lorawise adapter rescale runs/first/adapter --by 0.5 -o weaker
    """
    from lorawise.base.errors import ConfigError
    from lorawise.store.algebra import rescale as work

    if (scaling is None) == (by is None):
        raise ConfigError("--scaling and --by", expected="one of the two", cure="write --scaling 1.0 or --by 0.5")
    opened = open_source(source, store)
    factor = by if by is not None else (scaling or 0.0) / opened.adapter.config.scaling
    child = work.rescale(opened.adapter, factor)
    config = child.config
    sentence = (
        f"r {config.r}, alpha {config.alpha:g}, scaling {config.scaling:g} (was {opened.adapter.config.scaling:g})"
    )
    return _written(
        out, child, [opened], lambda m: _exact(opened, m).times(factor), "rescale", {"by": factor}, sentence
    )


@adapter.command("resize")
def resize(
    source: One,
    out: Out,
    rank: Annotated[int | None, typer.Option(metavar="N", help="At most this rank.")] = None,
    energy: Annotated[float | None, typer.Option(metavar="E", help="Keep this share of ‖ΔW‖², 0.95.")] = None,
    budget: Annotated[int | None, typer.Option(metavar="PARAMS", help="At most so many parameters.")] = None,
    spread: Annotated[str, typer.Option(metavar="HOW", help="uniform, layer or all: ranks over the modules.")] = "",
    dtype: Dtype = "auto",
    store: Store = None,
    as_json: Json = False,
) -> Outcome:
    """Fewer parameters for nearly the same update, by its largest singular values.

    \b
    lorawise adapter resize runs/first/adapter --rank 8 -o smaller
    lorawise adapter resize runs/first/adapter --energy 0.95 -o smaller
    """
    from lorawise.store.algebra import resize as work
    from lorawise.store.algebra.result import stored_type

    goal = work.Goal(rank=rank, energy=energy, budget=budget)
    opened = open_source(source, store)
    spectra = work.Spectra.of(opened.adapter)
    ranks = work.ranks_for(spectra, goal, spread)
    child = work.resize(opened.adapter, ranks, stored_type(dtype, [opened.adapter], computes=True))
    options = {"rank": rank, "energy": energy, "budget": budget, "spread": spread, "dtype": dtype}
    kept = spectra.energy(ranks)
    sentence = f"ranks {min(ranks.values())} to {max(ranks.values())}, {100 * kept:.4g} % of the energy kept"
    return _written(out, child, [opened], lambda m: _exact(opened, m), "resize", options, sentence, energy=kept)


@adapter.command("combine")
def combine(
    parts: Annotated[list[str], typer.Argument(metavar="ADAPTER=WEIGHT...", help="Negative weights subtract.")],
    out: Out,
    method: Annotated[
        str, typer.Option(metavar="M", help="exact, svd, linear, ties, dare, dare-ties or magnitude.")
    ] = "exact",
    rank: Annotated[int | None, typer.Option(metavar="N", help="Rank of the result, where it is cut to one.")] = None,
    density: Annotated[float, typer.Option(metavar="D", help="Share of entries ties, dare, magnitude keep.")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of what dare drops; kept in the history.")] = 0,
    dtype: Dtype = "auto",
    store: Store = None,
    as_json: Json = False,
) -> Outcome:
    """Several adapters as one: the weighted sum of their updates, exactly unless another method is named.

    \b
    lorawise adapter combine legal=0.7 brief=0.3 -o both
    lorawise adapter combine tuned=1 rude=-0.5 --method svd --rank 16 -o polite
    """
    from lorawise.base.errors import ConfigError
    from lorawise.store.algebra import combine as work
    from lorawise.store.algebra.result import stored_type

    options = work.Options(rank=rank, density=density, seed=seed)
    if rank is not None and method in ("exact", "linear"):
        raise ConfigError(f"--rank with the method '{method}'", expected="no rank", cure="use --method svd")
    asked = [_weighted(part) for part in parts]
    sources = [open_source(name, store) for name, _ in asked]
    named = [
        work.Part(name=name, adapter=opened.adapter, weight=weight)
        for (name, weight), opened in zip(asked, sources, strict=True)
    ]
    adapters = [opened.adapter for opened in sources]
    child = work.combine(named, method, options, stored_type(dtype, adapters, computes=True))
    run = {"method": method, "weights": [w for _, w in asked], "rank": rank, "density": density, "seed": seed}
    sentence = " ".join(f"{weight:+g}·{name}" for name, weight in asked) + f", {method}"
    if method in work.DENSE:
        sentence += f", density {density:g}, seed {seed}"
    return _written(out, child, sources, work.exact_sum(named), "combine", run, sentence)


@adapter.command("normalize")
def normalize(
    source: One,
    out: Out,
    from_pickle: Annotated[bool, typer.Option("--from-pickle", help="Read adapter_model.bin, weights only.")] = False,
    dtype: Dtype = "auto",
    store: Store = None,
    as_json: Json = False,
) -> Outcome:
    """The portable form: alpha = r, one rank that servers allow, no rsLoRA, no patterns.

    \b
    lorawise adapter normalize runs/first/adapter -o portable
    """
    from lorawise.store.algebra import normalize as work
    from lorawise.store.algebra.result import stored_type

    opened = open_source(source, store, from_pickle=from_pickle)
    rounds = not work.folds_exactly(opened.adapter)
    child = work.normal_form(opened.adapter, stored_type(dtype, [opened.adapter], computes=rounds))
    sentence = f"r {child.config.r}, alpha {child.config.alpha:g}, scaling 1, one for all modules"
    if child.full:
        sentence += "\nit holds modules trained in full, which vLLM refuses"
    return _written(out, child, [opened], lambda m: _exact(opened, m), "normalize", {"dtype": dtype}, sentence)


def open_source(name: str, store: Path | None, *, from_pickle: bool = False) -> "Source":
    """A folder, or @NAME in the local store."""
    from lorawise.store.algebra.result import Source

    if name.startswith("@"):
        from lorawise.store.shelf import Shelf

        return Source.open(Shelf.at(store).find(name.removeprefix("@")))
    if from_pickle:
        from lorawise.store.pickled import open_pickled

        return open_pickled(Path(name).expanduser())
    return Source.open(Path(name).expanduser())


def _exact(source: "Source", module: str) -> "Factors":
    from lorawise.store.algebra.factors import Factors

    return Factors.of(source.adapter, module)


def _written(
    out: Path,
    child: "StoredAdapter",
    parents: "list[Source]",
    exact: "Callable[[str], Factors]",
    operation: str,
    options: "Mapping[str, object]",
    sentence: str,
    **more: object,
) -> Outcome:
    from lorawise.report import adapter_tables
    from lorawise.store.algebra.result import write_child

    result = write_child(out, child, parents, exact, operation=operation, options=options)
    document = {
        "path": str(result.path),
        "error": result.error,
        "errors": dict(result.errors),
        "rank": result.rank,
        "parameters": result.parameters,
        "parents": [parent.digest for parent in parents],
        **options,
        **more,
    }
    return Outcome(document=document, table=adapter_tables.written(result, sentence))


def _weighted(part: str) -> tuple[str, float]:
    """`legal=0.7` → (legal, 0.7)."""
    name, _, weight = part.rpartition("=")
    with contextlib.suppress(ValueError):
        if name:
            return name, float(weight)
    raise typer.BadParameter(f"'{part}' is not ADAPTER=WEIGHT, such as legal=0.7")


def _base_folder(model: str) -> Path:
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    from lorawise.models.files import resolve_model

    return resolve_model(model).folder

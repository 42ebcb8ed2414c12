"""The base of a GGUF export: which tensor of it each module of an adapter updates, judged before a byte is written."""

from collections.abc import Iterator, Mapping

from lorawise.base.errors import AdapterError, ConfigError
from lorawise.exporting.refusals import refuse_beyond_linear
from lorawise.facts.gguf_tensors import GGUFPlaces, Place
from lorawise.facts.model import ModelFacts
from lorawise.facts.read import read_model, read_model_here
from lorawise.store.algebra.result import Source

_SHOWN = 12


def base_facts(source: Source, model: str) -> ModelFacts:
    """Of `model`, or of the base that the adapter names if this machine knows it; headers and configs alone."""
    if model:
        return read_model(model)
    found = read_model_here(source.base) if source.base else None
    if found is None:
        raise ConfigError(
            f"{source.folder} names {source.base or 'no base model'}"
            + (", which is not on this machine" if source.base else ""),
            expected="the base model: GGUF names and orders weights by its family and heads",
            cure="add --model with its folder, its .gguf file or its hub id",
        )
    return found


def places_of(source: Source, facts: ModelFacts) -> tuple[str, Mapping[str, Place]]:
    """general.architecture, and module → its tensor; `AdapterError` with everything that keeps the two apart."""
    refuse_beyond_linear(source, "llama.cpp", heads=not facts.tied)
    known = GGUFPlaces.of(facts)
    places: dict[str, Place] = {}
    problems = list(_misfits(source, facts))
    if not problems:
        for module, (_, b) in source.adapter.layers.items():
            place = known.place(module, b.shape[0])
            if place is None:
                problems.append(f"{module}: llama.cpp has no tensor for it in a {known.architecture} model")
            else:
                places[module] = place
    if problems:
        shown = problems[:_SHOWN] + ([f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else [])
        raise AdapterError(
            f"{source.folder} does not fit {facts.source}:\n  " + "\n  ".join(shown),
            expected="an adapter trained over this base model",
            cure="name its base with --model (`lorawise adapter show` tells which it is)",
        )
    return known.architecture, places


def _misfits(source: Source, facts: ModelFacts) -> Iterator[str]:
    shapes = {matrix.name: (matrix.in_features, matrix.out_features) for matrix in facts.matrices}
    if not source.adapter.layers:
        yield "it targets nothing: it holds no low-rank update"
    for module, (a, b) in source.adapter.layers.items():
        have, want = (a.shape[1], b.shape[0]), shapes.get(module)
        if want is None:
            yield f"{module}: the base has no such module"
        elif have != want:
            yield f"{module}: the adapter is {have[0]} → {have[1]}, the base {want[0]} → {want[1]}"

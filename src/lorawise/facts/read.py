"""`read_model`: what is true of a base model, from what is cheapest to read."""

from pathlib import Path

from lorawise.base.errors import ModelError
from lorawise.facts.families import family_of, unknown_family
from lorawise.facts.folder import read_config
from lorawise.facts.layout import facts_of, layout_of
from lorawise.facts.model import ModelFacts


def read_model(source: str | Path) -> ModelFacts:
    """Facts of the model at `source`, a folder with config.json."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise ModelError(f"there is no model at {folder}", expected="a folder with config.json")
    values = read_config(folder)
    family = family_of(values["model_type"])
    if family is None:
        raise unknown_family(values["model_type"], str(folder / "config.json"), "model.safetensors")
    return facts_of(layout_of(family, values, str(folder / "config.json")), str(source))

"""The demo's data is what its generator makes, and its test is of things never trained on."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from lorawise.cli.demo import SUPPORT
from lorawise.data.read import read_rows

PARTS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    path = Path(__file__).parents[2] / "examples/support/generate.py"
    spec = importlib.util.spec_from_file_location("generate_support", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answers(part: str) -> list[dict]:
    rows = read_rows(str(SUPPORT / f"{part}.jsonl"))
    return [json.loads(row.messages[-1]["content"]) for row in rows]


def test_the_shipped_files_are_what_the_generator_makes_to_the_byte(generator: ModuleType, tmp_path: Path) -> None:
    generator.main(tmp_path)
    for part in PARTS:
        assert (tmp_path / f"{part}.jsonl").read_bytes() == (SUPPORT / f"{part}.jsonl").read_bytes()


@pytest.mark.parametrize("part", PARTS)
def test_every_row_is_a_conversation_with_one_answer(generator: ModuleType, part: str) -> None:
    rows = read_rows(str(SUPPORT / f"{part}.jsonl"))
    assert len(rows) == generator.SIZES[part]
    assert {tuple(m["role"] for m in row.messages) for row in rows} == {("system", "user", "assistant")}
    assert len({row.fingerprint for row in rows}) == len(rows)


@pytest.mark.parametrize("held", ["validation", "test"])
def test_names_cities_and_products_of_held_rows_were_never_trained_on(held: str) -> None:
    trained, kept = answers("train"), answers(held)
    for of in (
        lambda answer: {answer["customer"]["name"]},
        lambda answer: {answer["customer"]["city"]} - {None},
        lambda answer: {item.partition(" x ")[2] for item in answer["items"]},
    ):
        assert not set().union(*map(of, trained)) & set().union(*map(of, kept))


def test_the_job_has_what_makes_it_worth_learning() -> None:
    every = answers("train")
    assert len({answer["intent"] for answer in every}) == 5
    for share in (
        sum(len(answer["items"]) > 1 for answer in every),
        sum(answer["order"] is None for answer in every),
        sum(answer["customer"]["city"] is None for answer in every),
        sum(answer["urgent"] for answer in every),
    ):
        assert 0.15 < share / len(every) < 0.85

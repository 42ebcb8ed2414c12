"""Errors say what was found, what was expected, and the cure."""

import pickle

import pytest

from lorawise.base.errors import AdapterError, ConfigError, Interrupted, LorawiseError, UsageError, nearest
from lorawise.base.registry import Registry


def test_an_error_shows_all_three_parts_and_survives_pickling() -> None:
    error = AdapterError("no lora_B for q_proj", expected="A and B for each module", cure="save it again")
    again = pickle.loads(pickle.dumps(error))
    assert (
        str(error) == str(again) == ("no lora_B for q_proj\n  expected: A and B for each module\n  cure: save it again")
    )
    assert again.to_json() == {
        "code": "adapter",
        "found": "no lora_B for q_proj",
        "expected": "A and B for each module",
        "cure": "save it again",
    }


def test_usage_errors_are_value_errors_and_each_error_has_its_exit_code() -> None:
    assert issubclass(UsageError, ValueError)
    assert (LorawiseError.exit_code, ConfigError.exit_code, Interrupted.exit_code) == (1, 2, 130)


def test_an_unknown_name_says_the_nearest_known_one() -> None:
    known = Registry[int]("init")
    known.register("kaiming")(1)
    known.register("gaussian")(2)
    with pytest.raises(ConfigError, match="did you mean 'gaussian'"):
        known["gausian"]
    assert nearest("zzz", ["b", "a"]) == "choose one of: a, b"
    with pytest.raises(ConfigError, match="registered twice"):
        known.register("kaiming")(3)

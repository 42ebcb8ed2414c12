"""`lorawise tune` as a person types it: a table, one JSON document, and refusals without a traceback."""

import json

import pytest
from tests.workbench import rows_of, tiny_run

from lorawise.cli.app import run

SCALINGS = ["--over", "lora.scaling=0.5,2,8"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("tune")
    (home / "run.yaml").write_text(tiny_run(home, rows=rows_of(40), train__steps=20).to_yaml())
    return home


def test_json_holds_what_the_contract_names(home, capsys):
    assert run(["tune", str(home / "run.yaml"), *SCALINGS, "-o", str(home / "json"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["best"]["validation_loss"] == min(t["validation_loss"] for t in document["trials"])
    assert document["best"]["setting"]["lora.scaling"] in (0.5, 2.0, 8.0)
    assert (home / "json/adapter/adapter_model.safetensors").is_file()
    assert {"setting", "state", "validation_loss", "tokens"} <= document["trials"][0].keys()
    assert document["full_run_equivalents"] > 0
    assert document["seconds"] > 0


def test_a_person_sees_a_table_a_sentence_and_what_to_type_next(home, capsys):
    assert run(["tune", str(home / "run.yaml"), *SCALINGS, "-o", str(home / "seen")]) == 0
    out, err = capsys.readouterr()
    assert "scaling  rung" in out
    assert "leads" in out
    assert out == "".join(f"{line.rstrip()}\n" for line in out.splitlines())
    assert f"lorawise train {home / 'seen/best.yaml'}" in err
    assert run(["tune", str(home / "run.yaml"), *SCALINGS, "-o", str(home / "seen"), "--resume"]) == 0
    assert capsys.readouterr().out == out


def test_the_run_file_left_for_the_winner_trains(home):
    assert run(["tune", str(home / "run.yaml"), *SCALINGS, "-o", str(home / "again"), "--json"]) == 0
    assert run(["train", str(home / "again/best.yaml"), "-o", str(home / "trained"), "--json"]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--over", "data.train=a,b"], "cannot differ"),
        (["--over", "lora.r=8..2"], "empty range"),
        (["--budget", "0.01"], "below one rung"),
        (["--eliminate", "halfing"], "halving"),
    ],
)
def test_bad_input_leaves_nothing_and_says_the_cure(home, capsys, arguments, said):
    assert run(["tune", str(home / "run.yaml"), *arguments, "-o", str(home / "bad"), "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert said in error["found"] + error["cure"]
    assert not (home / "bad").exists()

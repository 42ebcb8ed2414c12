"""A study from end to end on a tiny model: exact moves, one table however often it is killed, bad input refused."""

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tests.tuning.small_study import small_study
from tests.workbench import rows_of, tiny_run

from lorawise.base.errors import ConfigError, StorageError, UsageError
from lorawise.lora.config import LoraConfig
from lorawise.models.files import resolve_model
from lorawise.runfile import RunFile
from lorawise.store import load_adapter
from lorawise.training.inputs import dated, read_inputs
from lorawise.training.optimizer import SlotSettings
from lorawise.training.setup import prepare
from lorawise.tuning.events import PackStepped, TrialFailed, TrialMeasured, from_line, to_line
from lorawise.tuning.folder import StudyFolder
from lorawise.tuning.pack import Member, Pack
from lorawise.tuning.result import table
from lorawise.tuning.samplers import Asker
from lorawise.tuning.space import Range

CONFIGS = (
    LoraConfig(r=1, scaling=8.0, seed=1, dropout=0.1),
    LoraConfig(r=16, scaling=0.5, seed=2, target_modules="attention"),
    LoraConfig(r=64, scaling=2.0, seed=3),
    LoraConfig(r=4, scaling=1.0, seed=4, target_modules="qv"),
)
RATES = (
    SlotSettings(learning_rate=2e-3, clip=1.0),
    SlotSettings(learning_rate=5e-3, clip=0.0),
    SlotSettings(learning_rate=1e-3, clip=0.1, weight_decay=0.1),
    SlotSettings(learning_rate=4e-3, lora_plus_ratio=4.0),
)


def member(i: int) -> Member:
    return Member(trial=i, config=CONFIGS[i], optimiser=RATES[i], schedule=lambda k: min(1.0, (k + 1) / 3))


def prepared_run(work: Path):
    run = dated(tiny_run(work, rows=rows_of(40), train__batch_tokens=128))
    files = resolve_model(run.model)
    return prepare(run, files, read_inputs(run, files))


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Pack:
    return Pack(prepared_run(tmp_path_factory.mktemp("pack")))


def test_moving_survivors_between_banks_changes_no_bit(pack):
    pack.hold([member(i) for i in range(4)], {})
    for k in range(5):
        pack.step(k)
    lifted = pack.lift()
    for chosen in ((3, 0), (2,), (1, 3, 2, 0)):
        pack.hold([member(i) for i in chosen], lifted)
        again = pack.lift()
        for trial in chosen:
            assert again[trial].counters == lifted[trial].counters
            assert again[trial].tensors.keys() == lifted[trial].tensors.keys()
            assert all(again[trial].tensors[name].equal(value) for name, value in lifted[trial].tensors.items())
    assert any(value.abs().max() > 0 for name, value in lifted[1].tensors.items() if name.startswith("exp_avg."))


def test_a_setting_that_moves_between_banks_ends_where_it_ends_alone(pack):
    pack.hold([member(2)], {})
    alone = [pack.step(k).losses[0] for k in range(40)]
    losses, states = [], {}
    for chosen, steps in (((0, 1, 2, 3), range(15)), ((2, 0), range(15, 30)), ((2,), range(30, 40))):
        pack.hold([member(i) for i in chosen], states)
        losses += [pack.step(k).losses[chosen.index(2)] for k in steps]
        states = pack.lift()
    assert alone[-1] < alone[0] - 0.2
    assert max(abs(one - other) for one, other in zip(alone, losses, strict=True)) < 1e-5


def test_every_slot_is_scored_as_it_is_alone_row_by_row(pack):
    pack.hold([member(i) for i in range(4)], {})
    for k in range(4):
        pack.step(k)
    states, together = pack.lift(), pack.scores()
    for i in range(4):
        pack.hold([member(i)], states)
        alone = pack.scores()
        assert abs(alone.row_losses[0] - together.row_losses[i]).max() < 1e-5


def test_a_small_study_keeps_the_best_and_says_so(tmp_path):
    found = small_study(tmp_path, tmp_path / "study")
    assert found.best.validation_loss == min(r.validation_loss for r in found.rows if r.validation_loss is not None)
    assert {row.state for row in found.rows} == {"finished", "eliminated"}
    assert found.full_run_equivalents == pytest.approx(9 * 16 / 64 + 3 * 48 / 64)
    weights = load_adapter(found.adapter)
    assert weights.config.scaling == found.best.full["scaling"]
    assert len(list((found.study / "adapters").iterdir())) == 3
    assert (found.study / "results.csv").read_text().count("\n") == 10
    events = StudyFolder(path=found.study).events()
    assert [from_line(to_line(event)) for event in events] == events
    assert tune_again(tmp_path, found.study).rows == found.rows


def tune_again(work: Path, out: Path):
    return small_study(work, out, resume=True)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", [0, 3, 30, 36, 60, 88])
def test_a_study_killed_anywhere_and_resumed_has_the_same_table(tmp_path, at):
    whole = small_study(tmp_path, tmp_path / "whole")
    left = at

    def kill(event) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed

    with pytest.raises(Killed):
        small_study(tmp_path, tmp_path / "study", readers=(kill,))
    resumed = small_study(tmp_path, tmp_path / "study", resume=True)
    assert resumed.rows == whole.rows
    assert resumed.sentence == whole.sentence
    assert (tmp_path / "study/results.csv").read_bytes() == (tmp_path / "whole/results.csv").read_bytes()
    for path in (tmp_path / "whole/adapter").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "study/adapter" / path.name).read_bytes()


def test_a_study_killed_by_the_system_goes_on_and_ends_in_the_same_table(tmp_path):
    """Kill -9 of another process, twice: within a rung, and again after the resume."""
    whole = small_study(tmp_path, tmp_path / "whole")
    out, kills = tmp_path / "killed", 0
    for lines in (4, 40):
        command = [
            sys.executable,
            "-m",
            "tests.tuning.small_study",
            str(out),
            str(tmp_path),
            *["--resume"] * bool(kills),
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and _lines(out / "events.jsonl") < lines:
            time.sleep(0.02)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    assert kills == 2, "it was killed before it was done"
    resumed = small_study(tmp_path, out, resume=True)
    assert resumed.rows == whole.rows
    assert (out / "results.csv").read_bytes() == (tmp_path / "whole/results.csv").read_bytes()


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def test_events_that_end_before_the_rung_whose_state_is_kept_are_refused(tmp_path):
    out = tmp_path / "study"

    def stop(event) -> None:
        if isinstance(event, PackStepped) and event.rung == 2:
            raise Killed

    with pytest.raises(Killed):
        small_study(tmp_path, out, readers=(stop,))
    log = out / "events.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join([*lines[:7], "{torn\n", *lines[8:]]))
    with pytest.raises(StorageError, match=r"readable up to line 7, before the end of rung 1"):
        small_study(tmp_path, out, resume=True)
    assert log.read_text().splitlines()[7] == "{torn", "nothing was written over it"


def test_the_next_two_are_kept_though_one_alone_came_to_the_last_rung(tmp_path):
    found = small_study(tmp_path, tmp_path / "study", over=("lora.scaling=0.5,1,2,4",))
    assert [row.state for row in found.rows] == ["finished", "eliminated", "eliminated", "eliminated"]
    kept = {row.trial: row for row in found.rows[:3]}
    assert {int(path.name) for path in (found.study / "adapters").iterdir()} == set(kept)
    for trial, row in kept.items():
        weights = load_adapter(found.study / f"adapters/{trial:02d}")
        assert weights.config.scaling == row.setting["lora.scaling"]
        assert any(pair[1].abs().max() > 0 for pair in weights.layers.values()), "it was trained"


def test_a_setting_that_diverges_is_failed_and_leaves_the_others_their_bits(tmp_path):
    def losses(out: str, rates: str) -> dict:
        over = (f"train.learning_rate={rates}",)
        found = small_study(tmp_path, tmp_path / out, over=over, eliminate="none")
        events = StudyFolder(path=found.study).events()
        failed = [e.trial for e in events if isinstance(e, TrialFailed)]
        return {"failed": failed, **{e.trial: e.row_losses for e in events if isinstance(e, TrialMeasured)}}

    fine, beside = losses("fine", "1e-3,2e-3,5e-3"), losses("beside", "1e-3,1e+30,5e-3")
    assert fine["failed"] == []
    assert beside["failed"] == [1]
    assert 1 not in beside
    assert beside[0] == fine[0]
    assert beside[2] == fine[2]


def test_settings_that_are_the_same_run_are_run_once(tmp_path):
    found = small_study(tmp_path, tmp_path / "one", over=("lora.r=1,2", "lora.rslora=false,true"), eliminate="none")
    equal = [row for row in found.rows if row.state == "equal"]
    assert {(row.trial, row.equal_to) for row in equal} == {(1, 0), (3, 2)}, "the scaling is kept, so they are one run"
    assert equal[0].validation_loss == next(r for r in found.rows if r.trial == equal[0].equal_to).validation_loss
    assert found.full_run_equivalents == 2


def test_scalings_and_ratios_that_come_to_the_same_are_run_once(tmp_path):
    over = ("train.clip=null", "lora.scaling=1,2,4", "train.lora_plus_ratio=1,2,4")
    found = small_study(tmp_path, tmp_path / "one", over=over, eliminate="none")
    assert found.full_run_equivalents == 5, "scaling × ratio is 1, 2, 4, 8 or 16"
    product = {r.trial: r.setting["lora.scaling"] * r.setting["train.lora_plus_ratio"] for r in found.rows}
    assert all(product[row.trial] == product[row.equal_to] for row in found.rows if row.equal_to is not None)
    clipped = small_study(tmp_path, tmp_path / "clipped", over=("train.clip=1.0", *over[1:]), eliminate="none")
    assert clipped.full_run_equivalents == 9


def test_a_range_is_searched_from_the_run_files_own_setting(tmp_path):
    over = ("train.learning_rate=1e-4..2e-2 log", "lora.r=2..16 log")
    found = small_study(tmp_path, tmp_path / "study", over=over, trials=5)
    first = next(row for row in found.rows if row.trial == 0)
    assert first.setting == {"train.learning_rate": 5e-3, "lora.r": 4}
    assert len({json.dumps(dict(row.setting)) for row in found.rows}) == 5
    assert (found.study / "optuna.log").stat().st_size > 0


@pytest.mark.parametrize(("sampler", "evenly"), [("qmc", True), ("random", False)])
def test_low_discrepancy_covers_a_range_evenly(tmp_path, sampler, evenly):
    axes = (Range(key="train.learning_rate", low=1e-5, high=1e-2, log=True, whole=False),)
    run = RunFile.model_validate({"model": "m", "data": {"train": "rows.jsonl"}})
    asker = Asker(axes, run, sampler=sampler, seed=0, storage=tmp_path / "journal")
    asked = [asker.ask()["train.learning_rate"] for _ in range(34)][2:]
    shares = [int(16 * (math.log10(rate) + 5) / 3) for rate in asked]
    assert (set(shares) >= set(range(16))) == evenly


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"over": ("lora.scalign=1,2",)}, "lora.scaling"),
        ({"over": ("lora.scaling=8..1",)}, "empty range"),
        ({"over": ("lora.scaling=",)}, "no values"),
        ({"over": ("lora.r=0,4",)}, "refused"),
        ({"over": ("lora.r=4,4",)}, "twice"),
        ({"budget": 0.1}, "below one rung"),
        ({"trials": 4}, "grids"),
        ({"sampler": "tpee"}, "tpe"),
        ({"over": ("lora.scaling=1..4",), "storage": "nosuchdb://here"}, "does not answer"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_cure(tmp_path, options, said):
    with pytest.raises(ConfigError, match=said):
        small_study(tmp_path, tmp_path / "study", **options)


def test_the_folder_of_another_study_is_refused(tmp_path):
    small_study(tmp_path, tmp_path / "study")
    with pytest.raises(UsageError, match="--resume"):
        small_study(tmp_path, tmp_path / "study")
    with pytest.raises(UsageError, match="run file, data changed"):
        small_study(tmp_path, tmp_path / "study", resume=True, seed_of_run=7)


def test_the_rate_is_held_until_the_last_rung_and_then_decays(tmp_path):
    found = small_study(tmp_path, tmp_path / "study", over=("lora.scaling=0.5,1,2,4,8",))
    rates = {e.step: e.rates[0] for e in StudyFolder(path=found.study).events() if isinstance(e, PackStepped)}
    assert {rates[step] for step in range(3, 17)} == {5e-3}
    assert 0 < rates[64] < 1e-4
    assert torch.all(torch.tensor([rates[step] for step in range(17, 65)]).diff() < 0)
    assert table(StudyFolder(path=found.study).events(), ended=True) == found.rows

"""The guide's cheat sheet, rank guide and examples, held by their content."""

import pytest

from lorawise.base.errors import ConfigError
from lorawise.lora.config import LoraConfig
from lorawise.planning.tasks import TASKS, find_task
from lorawise.runfile.schema import TASKS as RUN_FILE_TASKS

# The guide's cheat sheet: task → ranks, alphas, scalings.
CHEAT_SHEET = {
    "style": ((4, 8), (8, 16), (1.0, 2.0)),
    "chat": ((8, 16), (16, 32), (2.0, 2.0)),
    "domain": ((16, 16), (32, 64), (2.0, 4.0)),
    "language": ((16, 32), (32, 64), (2.0, 2.0)),
    "multitask": ((32, 32), (32, 32), (1.0, 1.0)),
    "classification": ((4, 4), (8, 8), (2.0, 2.0)),
}


@pytest.mark.parametrize("name", CHEAT_SHEET)
def test_every_row_of_the_cheat_sheet_is_inside_the_tasks_ranges(name: str) -> None:
    task, (ranks, alphas, scalings) = find_task(name), CHEAT_SHEET[name]
    assert task.row == ranks
    assert task.ranks[0] <= ranks[0] <= ranks[1] <= task.ranks[1]
    assert task.scalings[0] <= scalings[0] <= scalings[1] <= task.scalings[1]
    assert ranks[0] <= task.r <= ranks[1]
    assert scalings[0] <= task.scaling <= scalings[1]
    assert alphas[0] <= task.r * task.scaling <= alphas[1]


@pytest.mark.parametrize(
    ("name", "r", "alpha"),
    [
        ("style", 8, 8),  # "Decrease alpha for style tuning"
        ("chat", 8, 16),  # "The most common default pairing"
        ("domain", 16, 32),  # "Increase alpha for domain shifts"
        ("language", 16, 32),
        ("multitask", 32, 32),
        ("classification", 4, 8),
    ],
)
def test_each_task_starts_where_the_guides_own_example_stands(name: str, r: int, alpha: float) -> None:
    task = find_task(name)
    assert (task.r, LoraConfig(r=task.r, scaling=task.scaling).alpha) == (r, alpha)


def test_style_holds_both_of_the_guides_ranges_and_stands_where_they_meet() -> None:
    style = find_task("style")
    assert style.scalings == (0.5, 2.0)
    assert max(0.5, 1.0) <= style.scaling <= min(1.0, 2.0)


@pytest.mark.parametrize("name", ["chat", "language", "multitask", "classification"])
def test_ranges_hold_the_neutral_start_and_the_community_default(name: str) -> None:
    """The guide starts with alpha = rank (scaling 1.0) and calls 2.0 the community's default."""
    low, high = find_task(name).scalings
    assert low <= 1.0
    assert high >= 2.0


@pytest.mark.parametrize("name", ["new-language", "new-behaviour"])
def test_where_lora_is_not_enough_the_rank_is_128_or_more_and_it_is_said(name: str) -> None:
    task = find_task(name)
    assert not task.lora_suffices
    assert task.r >= 128
    assert all(TASKS[other].lora_suffices for other in CHEAT_SHEET)


def test_every_reason_is_a_sentence_of_its_own_or_the_shared_one() -> None:
    assert all(len(task.why) > 40 for task in TASKS.values())


def test_the_run_file_knows_the_same_tasks() -> None:
    assert set(TASKS) == set(RUN_FILE_TASKS)


def test_a_misspelt_task_says_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'domain'"):
        find_task("domian")


def test_the_guides_saving_is_99_2_percent() -> None:
    """4096 × 4096 in full, against r 16: 131,072 parameters."""
    full, lora = 4096 * 4096, 16 * 4096 + 4096 * 16
    assert (full, lora) == (16_777_216, 131_072)
    assert f"{1 - lora / full:.1%}" == "99.2%"


@pytest.mark.parametrize(("alpha", "r", "scaling"), [(16, 16, 1.0), (32, 16, 2.0), (16, 8, 2.0), (8, 16, 0.5)])
def test_the_guides_first_table_of_scalings(alpha: float, r: int, scaling: float) -> None:
    assert LoraConfig(r=r, alpha=alpha).scaling == scaling


def test_doubling_the_rank_at_a_fixed_alpha_halves_the_scaling_and_replace_keeps_it() -> None:
    """Mistake 1 of the guide."""
    assert LoraConfig(r=8, alpha=16).scaling == 2.0
    assert LoraConfig(r=16, alpha=16).scaling == 1.0
    assert LoraConfig(r=8, alpha=16).replace(r=16).scaling == 2.0

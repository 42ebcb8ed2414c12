"""docs/planning.md says what the planner does."""

from pathlib import Path

from lorawise.planning.tasks import TASKS

PAGE = Path(__file__).parents[2] / "docs" / "planning.md"


def _rows() -> dict[str, list[str]]:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]
    return {row[0]: row[1:] for row in cells}


def _span(pair: tuple[float, float]) -> str:
    return f"{pair[0]:g}–{pair[1]:g}"


def test_the_page_tabulates_every_task_with_its_own_numbers() -> None:
    expected = {
        name: [str(task.r), _span(task.ranks), f"{task.scaling:g}", _span(task.scalings)]
        for name, task in TASKS.items()
    }
    assert {name: row[:4] for name, row in _rows().items()} == expected


def test_the_page_quotes_the_guides_ranks() -> None:
    for name, task in TASKS.items():
        if task.lora_suffices:
            low, high = task.row
            assert _rows()[name][4].startswith(f"r {low}," if low == high else f"r {low}–{high},")

"""Results that are kept: one file a benchmark and day under benchmarks/results, with what it was measured with."""

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def today() -> str:
    """In UTC, as results are dated: YYYY-MM-DD."""
    return datetime.now(UTC).date().isoformat()


def versions(*names: str) -> dict[str, str]:
    """Of installed packages."""
    return {name: version(name) for name in names}


def place(name: str, result: Mapping[str, Any]) -> Path:
    """Where `result` is kept; it says its `date`."""
    return RESULTS / f"{name}-{result['date']}.json"


def keep(name: str, result: Mapping[str, Any]) -> None:
    """Write `result` to its place, over an earlier one of the same day, and tell where."""
    path = place(name, result)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"kept in {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}", file=sys.stderr)

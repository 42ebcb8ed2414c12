"""facts.json: what a run saw once, beside its curves: how it started, preflight, findings, how it ended.

    {"started": {…}, "preflight": {…}, "findings": [{…, "step": 0}], "ended": {…}}

Written whole at each such event, so that report.html can be made again from the run's folder alone.
"""

import json
from pathlib import Path
from typing import Any

from lorawise.base.files import storage_errors, write_text
from lorawise.report.events import Event, Noted, PreflightDone, RunEnded, RunStarted
from lorawise.report.metrics import plain

FACTS_NAME = "facts.json"


class FactsFile:
    """A reader that keeps `path` current. `resume_at` keeps the findings up to that step; None starts anew."""

    def __init__(self, path: Path, *, resume_at: int | None = None) -> None:
        self.path = path
        before = {} if resume_at is None else read_facts(path)
        kept = [finding for finding in before.get("findings", []) if finding["step"] <= (resume_at or 0)]
        self._facts: dict[str, Any] = before | {"findings": kept}
        self._facts.pop("ended", None)

    def __call__(self, event: Event) -> None:
        match event:
            case RunStarted():
                self._facts["started"] = plain(event)
            case PreflightDone():
                self._facts["preflight"] = plain(event.report)
            case Noted():
                finding = plain(event.finding) | {"step": event.step}
                if finding in self._facts["findings"]:
                    return
                self._facts["findings"].append(finding)
            case RunEnded():
                self._facts["ended"] = plain(event)
            case _:
                return
        with storage_errors(self.path):
            self.path.parent.stat()  # a run's folder that was taken away is not made anew
        write_text(self.path, json.dumps(self._facts, indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    def close(self) -> None:
        """Nothing is held open."""


def read_facts(path: Path) -> dict[str, Any]:
    """The facts of a run; empty when it left none that can be read."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError):
        return {}
    if not isinstance(facts, dict):
        return {}
    tables = {name: facts[name] for name in ("started", "preflight", "ended") if isinstance(facts.get(name), dict)}
    findings = facts.get("findings")
    whole = [each for each in findings if _is_finding(each)] if isinstance(findings, list) else []
    return tables | {"findings": whole}


def _is_finding(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("step"), int) and {"code", "message"} <= value.keys()

"""A report as text for people, and as what other tools read: SARIF 2.1.0 and GitHub's workflow commands.

SARIF: https://docs.oasis-open.org/sarif/sarif/v2.1.0/   GitHub: "workflow commands", ::error file=…,line=…::message
"""

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from lorawise.base.findings import Finding, Level
from lorawise.checking.report import Report
from lorawise.checking.rules import RULES

SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
MOST_TOLD = 1000  # findings printed as text
_SARIF_LEVELS: Mapping[Level, str] = {"error": "error", "warning": "warning", "note": "note"}
_GITHUB_LEVELS: Mapping[Level, str] = {"error": "error", "warning": "warning", "note": "notice"}


def as_text(report: Report, *, width: int = 80) -> str:
    """Findings by file with their lines; each with its cure under it; a summary last."""
    lines: list[str] = []
    shown = 0
    for path, findings in report.by_file().items():
        lines += [*([""] if lines else []), _printable(path) or "(no file)"]
        margin = max(len(str(finding.line or "-")) for finding in findings)
        for finding in findings:
            if shown < MOST_TOLD:
                lines += _told(finding, margin, width)
            shown += 1
    if shown > MOST_TOLD:
        lines.append(f"… and {shown - MOST_TOLD:,} more")
    return "\n".join([*lines, *([""] if lines else []), summary(report)])


def _told(finding: Finding, margin: int, width: int) -> Iterator[str]:
    head = f"  {finding.line or '-':>{margin}}  {finding.level:<7}  {finding.code}  "
    indent = " " * len(head)
    yield from textwrap.wrap(
        _printable(finding.message), width, initial_indent=head, subsequent_indent=indent, break_long_words=False
    )
    if finding.cure:
        yield from textwrap.wrap(
            f"→ {_printable(finding.cure)}",
            width,
            initial_indent=indent,
            subsequent_indent=indent + "  ",
            break_long_words=False,
        )


def _printable(text: str) -> str:
    """What a file says could move the cursor or colour the screen: control characters are shown, not sent."""
    clean = text.encode("utf-8", "replace").decode()
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in clean)[:2000]


def summary(report: Report) -> str:
    counts = report.counts
    parts = [f"{counts[level]} {level}{'s' if counts[level] != 1 else ''}" for level in ("error", "warning", "note")]
    files = f"{report.files:,} file{'s' if report.files != 1 else ''}"
    silenced = f", {report.silenced} ignored by comments" if report.silenced else ""
    told = ", ".join(part for part in parts if not part.startswith("0 ")) or "nothing found"
    return f"{told} in {files}{silenced}"


def as_document(report: Report) -> dict[str, Any]:
    """The keys of `--json`."""
    return {
        "findings": [_plain(finding) for finding in report.findings],
        "counts": {level: report.counts[level] for level in ("error", "warning", "note")},
        "files": report.files,
        "silenced": report.silenced,
        "fixable": sum(len(fixes) for fixes in report.fixes.values()),
    }


def _plain(finding: Finding) -> dict[str, Any]:
    return {
        "code": finding.code,
        "level": finding.level,
        "path": finding.path.encode("utf-8", "replace").decode(),
        "line": finding.line,
        "message": finding.message.encode("utf-8", "replace").decode(),
        "cure": finding.cure,
    }


def as_sarif(report: Report, *, version: str) -> dict[str, Any]:
    """One run of SARIF 2.1.0, with the manual's first paragraph of every rule that is used."""
    used = sorted({finding.code for finding in report.findings})
    rules = [
        {
            "id": code,
            "name": RULES[code].name,
            "shortDescription": {"text": RULES[code].title},
            "fullDescription": {"text": RULES[code].manual},
            "defaultConfiguration": {"level": _SARIF_LEVELS[RULES[code].level]},
        }
        for code in used
    ]
    results = [_result(finding, used.index(finding.code)) for finding in report.findings]
    driver = {
        "name": "lorawise",
        "version": version,
        "informationUri": "https://github.com/lorawise/lorawise",
        "rules": rules,
    }
    return {"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}


def _result(finding: Finding, index: int) -> dict[str, Any]:
    plain = _plain(finding)
    place: dict[str, Any] = {"artifactLocation": {"uri": plain["path"].replace("\\", "/")}}
    if finding.line:
        place["region"] = {"startLine": finding.line}
    text = plain["message"] + (f" Cure: {finding.cure}." if finding.cure else "")
    return {
        "ruleId": finding.code,
        "ruleIndex": index,
        "level": _SARIF_LEVELS[finding.level],
        "message": {"text": text},
        "locations": [{"physicalLocation": place}],
    }


def as_sarif_text(report: Report, *, version: str) -> str:
    return json.dumps(as_sarif(report, version=version), indent=2, ensure_ascii=False)


def as_github(report: Report) -> str:
    """Workflow commands: one annotation a finding."""
    return "\n".join(map(_annotation, report.findings))


def _annotation(finding: Finding) -> str:
    where = f"file={_property(finding.path)}" + (f",line={finding.line}" if finding.line else "")
    text = finding.message + (f" ({finding.cure})" if finding.cure else "")
    return f"::{_GITHUB_LEVELS[finding.level]} {where},title={finding.code}::{_data(text)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")

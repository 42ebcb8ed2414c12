"""Findings with cures: what is wrong with a setting, rows, a run or an adapter, seen without running anything.

    PATH ─ reading ─▶ Setting, Script, Data, RunLog, AdapterFile ─ rules ─▶ Finding ─ report ─▶ text, JSON, SARIF,
    GitHub

A rule is a generator registered with a code; its docstring is its page of the manual (docs/rules.md).
"""

from lorawise.checking.checker import check
from lorawise.checking.report import Report

__all__ = ["Report", "check"]

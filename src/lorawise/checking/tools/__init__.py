"""Other tools' configs: one entry of the registry a tool."""

from lorawise.checking.tools import native, own, peers
from lorawise.checking.tools.tool import TOOLS, Tool

__all__ = ["TOOLS", "Tool", "native", "own", "peers"]

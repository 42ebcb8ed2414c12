"""The most memory this process ever held."""

import resource
import sys
from pathlib import Path


def peak_memory() -> int:
    """Bytes resident at the peak so far.

    On Linux as the process's own status says it: `ru_maxrss` of a child begins at what its parent held.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        status = ""
    line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), None)
    if line is not None:
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

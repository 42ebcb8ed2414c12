"""Stopping on a signal: the first one asks the loop to finish its step and save, the second ends the process.

While nothing has been trained there is no step to finish, and the first one ends it too. Python loses an exception that
is raised inside a callback of its own (`Exception ignored in …`); the request stays, so that the loop then stops.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # SIGHUP: the terminal or the connection went away


@dataclass
class StopRequest:
    """`name` is the signal that asked, None while nobody did; `patient` while there is a step to finish."""

    name: str | None = None
    patient: bool = True

    def __bool__(self) -> bool:
        return self.name is not None


@contextlib.contextmanager
def stop_on_signal(*, patient: bool = True) -> Iterator[StopRequest]:
    """SIGINT, SIGTERM and SIGHUP set the request; a second one, or the first of an impatient request, raises
    KeyboardInterrupt. Handlers return as they were.

    Under `nohup` SIGHUP stays ignored.

    Outside the main thread, where Python delivers no signals, the request simply stays unset.
    """
    request = StopRequest(patient=patient)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, _: FrameType | None) -> None:
        asked = bool(request)
        request.name = signal.Signals(number).name
        if asked or not request.patient:
            raise KeyboardInterrupt

    nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    heeded = [number for number in STOPPING if not (nohup and number is signal.SIGHUP)]
    before = {number: signal.signal(number, ask) for number in heeded}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Stopping on a signal: the first one asks the loop to finish its step and save, the second ends the process."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # SIGHUP: the terminal or the connection went away


@dataclass
class StopRequest:
    """`name` is the signal that asked, None while nobody did."""

    name: str | None = None

    def __bool__(self) -> bool:
        return self.name is not None


@contextlib.contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """SIGINT, SIGTERM and SIGHUP set the request; a second one raises KeyboardInterrupt. Handlers return as they were.

    Under `nohup` SIGHUP stays ignored.

    Outside the main thread, where Python delivers no signals, the request simply stays unset.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, _: FrameType | None) -> None:
        if request:
            raise KeyboardInterrupt
        request.name = signal.Signals(number).name

    nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    heeded = [number for number in STOPPING if not (nohup and number is signal.SIGHUP)]
    before = {number: signal.signal(number, ask) for number in heeded}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

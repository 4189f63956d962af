"""Stops a run by signals: the first one lets it save what it has, a later one ends the process at once."""

from __future__ import annotations

import _thread
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Self

from lora_bench.errors import INTERRUPTED, StopRequested

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
# Seconds (chosen): a signal to the whole group, and the same one forwarded by its leader, are one request.
ONE_REQUEST = 1.0
RAISE_AGAIN = 0.05  # seconds until a stop that was swallowed is raised again (chosen)
_SWALLOWED = 0  # the byte that asks for it; no signal has this number


class Stopper:
    """Whether a signal has asked to stop.

    As a context manager it handles signals. It does so in the main thread; in other threads Python delivers none.

    Between `hold` and `release` there is work that would be lost: a signal only sets `asked`, and the code that does
    the work checks it after each step, saves, and raises KeyboardInterrupt. At other times the signal raises
    KeyboardInterrupt at once, but only once, so that a second signal does not interrupt the clean-up.

    Python swallows an exception that is raised in a destructor or in the callback of a weak reference; this is noticed,
    and it is raised again. Libraries swallow exceptions too, so code that works in parts calls `check` between them. A
    signal that comes more than `ONE_REQUEST` seconds after the first ends the process, whatever it does.

    Attributes:
        asked: Whether a signal has asked to stop.
    """

    def __init__(self) -> None:
        self.asked = False
        self._held = self._raised = False
        self._resent = 0
        self._before: dict[int, Any] = {}
        self._hook_before: Any = None
        self._wakeup_before = -1
        self._sender: socket.socket | None = None
        self._outer: Token[Stopper] | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._listen()
        self._outer = _CURRENT.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        if self._sender is not None:
            signal.set_wakeup_fd(self._wakeup_before)
            sys.unraisablehook = self._hook_before
            with suppress(OSError):
                self._sender.shutdown(socket.SHUT_RDWR)
            self._sender.close()
        if self._outer is not None:
            _CURRENT.reset(self._outer)

    def _listen(self) -> None:
        receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        # The interpreter's C handler writes the signal's number at once, also while the main thread is in a library.
        self._wakeup_before = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        self._hook_before, sys.unraisablehook = sys.unraisablehook, self._unraisable
        threading.Thread(target=self._watch, args=(receiver,), name="signals", daemon=True).start()
        ignored = {number for number in SIGNALS if _is_ignored_hangup(number)}  # as nohup does
        self._before = {number: signal.signal(number, self._answer) for number in SIGNALS if number not in ignored}

    def _answer(self, *_: object) -> None:
        self.asked = True
        if not self._held and not self._raised:
            self._raised = True
            raise StopRequested

    def _unraisable(self, event: sys.UnraisableHookArgs) -> None:
        """Handle what Python could not raise: a stop is raised again, anything else is reported as before."""
        if isinstance(event.exc_value, StopRequested):
            self._raised = False
            if self._sender is not None:
                with suppress(OSError):
                    self._sender.send(bytes([_SWALLOWED]))
        elif not (isinstance(event.exc_value, OSError) and "ignored due to race condition" in str(event.exc_value)):
            self._hook_before(event)

    def _watch(self, receiver: socket.socket) -> None:
        """In a thread of its own: count signals, and end the process at the second request."""
        first: float | None = None
        with receiver:
            while received := receiver.recv(64):
                for number in received:
                    if number == _SWALLOWED:
                        time.sleep(RAISE_AGAIN)
                        self._resent += 1
                        _thread.interrupt_main(signal.SIGINT)
                    elif self._resent and number == signal.SIGINT:
                        self._resent -= 1
                    elif number in SIGNALS:
                        first = first or time.monotonic()
                        if time.monotonic() - first > ONE_REQUEST:
                            os._exit(INTERRUPTED)

    def hold(self) -> None:
        """Begin work that would be lost if a signal ended it.

        Raises:
            KeyboardInterrupt: A signal came before.
        """
        self._held = True
        if self.asked:
            self.release()

    def release(self) -> None:
        """End work that would be lost if a signal ended it.

        Raises:
            KeyboardInterrupt: A signal came meanwhile.
        """
        self._held = False
        self.check()

    def check(self) -> None:
        """Stop between two parts of the work if a signal has asked to.

        Raises:
            KeyboardInterrupt: A signal has come.
        """
        if self.asked:
            self._raised = True
            raise StopRequested

    def end(self) -> None:
        """Make the first signal raise nothing from now on, since the process is about to end."""
        self._raised = True


def ignore() -> None:
    """Ignore signals while the interpreter shuts down.

    That takes seconds, and Python restores the default handlers first, which would kill the process.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _is_ignored_hangup(number: int) -> bool:
    """Whether the process was started so that it outlives its terminal."""
    return number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) is signal.SIG_IGN


_CURRENT: ContextVar[Stopper] = ContextVar("stopper")


def current() -> Stopper:
    """Return the stopper that handles signals now; if there is none, one that nothing will ask to stop."""
    return _CURRENT.get(Stopper())

"""How a run is stopped: the first signal lets it save what it has, the second ends it at once."""

from __future__ import annotations

import signal
import threading
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Self

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Stopper:
    """Whether a signal has asked to stop. As a context it answers signals (in the main thread; elsewhere none come).

    While something is held that would be lost (`hold`), a signal sets `asked` and no more; who holds looks at it after
    each step, saves, and raises KeyboardInterrupt. At other times the signal raises it at once. After the first signal
    the system's own answer is back: the next one ends the process.
    """

    def __init__(self) -> None:
        self.asked = False
        self._held = False
        self._before: dict[int, Any] = {}
        self._outer: Token[Stopper] | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._answer) for number in SIGNALS}
        self._outer = _CURRENT.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        if self._outer is not None:
            _CURRENT.reset(self._outer)

    def _answer(self, *_: object) -> None:
        self.asked = True
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        if not self._held:
            raise KeyboardInterrupt

    def hold(self) -> None:
        """From now on something would be lost."""
        self._held = True

    def release(self) -> None:
        """Nothing would be lost any more.

        Raises:
            KeyboardInterrupt: a signal came meanwhile.
        """
        self._held = False
        if self.asked:
            raise KeyboardInterrupt


_CURRENT: ContextVar[Stopper] = ContextVar("stopper")


def current() -> Stopper:
    """The one that answers signals now; one that nothing asks if there is none."""
    return _CURRENT.get(Stopper())

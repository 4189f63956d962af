"""The program's standard output and standard error: a stream that fails must not stop the work behind it.

A pipe whose reader has gone, a full disk behind a redirection and a closed terminal make every write raise. Here the
first failure is remembered, later output is discarded, and nothing is raised.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from rich.console import Console
from rich.text import Text

from lora_bench.errors import DONE, MISSING, BenchError
from lora_bench.text import clean


def plain_console(stderr: bool = False) -> Console:
    """Return a console on a standard stream; it prints strings as they are, without markup or highlighting."""
    return Console(stderr=stderr, highlight=False, markup=False)


def print_line(text: str, style: str = "", stderr: bool = False) -> None:
    """Print text that may come from outside as one line, which only a terminal wraps."""
    plain_console(stderr).print(Text(clean(text), style), soft_wrap=True)


class ShieldedStream:
    """A text stream that never raises when it cannot be written; `failure` is the first error."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        """Write the text, or discard it."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._note_failure(error)
            return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each line, or discard it."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the buffer, or discard it."""
        try:
            self._stream.flush()
        except OSError as error:
            self._note_failure(error)

    def _note_failure(self, error: OSError) -> None:
        if self.failure is None:
            self.failure = error
            # The interpreter flushes the buffer when it ends, which would fail again: send that to the null device.
            with suppress(OSError, ValueError):
                null_device = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null_device, self._stream.fileno())
                os.close(null_device)
            _STATE.announce()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _State:
    """The shielded standard output, and the notice to print on standard error if it fails while work continues."""

    def __init__(self) -> None:
        self.output: ShieldedStream | None = None
        # While rich shows bars, `sys.stderr` leads to standard output, which is what may have failed.
        self.errors: TextIO | None = None
        self.notice: str | None = None
        self.announced = False

    @property
    def failure(self) -> OSError | None:
        return None if self.output is None else self.output.failure

    def announce(self) -> None:
        if self.failure is not None and self.notice is not None and not self.announced:
            self.announced = True
            reason = self.failure.strerror or type(self.failure).__name__
            print(clean(f"Standard output cannot be written ({reason}): {self.notice}"), file=self.errors, flush=True)


_STATE = _State()


def shield_streams() -> None:
    """Shield the program's standard streams, and open closed descriptors on the null device."""
    # A closed descriptor would be given to the next file that is opened, and libraries would print into that file.
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if isinstance(sys.stdout, ShieldedStream):
        return
    # Python has no stream for a descriptor that was closed, which libraries do not expect.
    sys.stderr = _STATE.errors = cast(TextIO, ShieldedStream(sys.stderr or _stream(2)))
    stdout = sys.stdout or _stream(1)
    if hasattr(stdout, "reconfigure"):
        stdout.reconfigure(errors="replace")
    _STATE.output = ShieldedStream(stdout)
    sys.stdout = cast(TextIO, _STATE.output)


def _stream(descriptor: int) -> TextIO:
    return open(descriptor, "w", encoding="utf-8", closefd=False)


@contextmanager
def optional(notice: str) -> Iterator[None]:
    """Enclose work whose point is not its output.

    Args:
        notice: Printed on standard error if standard output fails before or within the block.
    """
    _STATE.notice = notice
    _STATE.announce()
    try:
        yield
    finally:
        if _STATE.output is not None:
            _STATE.output.flush()
        _STATE.notice = None


def failed() -> bool:
    """Return whether standard output could not be written."""
    return _STATE.failure is not None


def final_flush() -> BenchError | None:
    """Flush the streams for the last time.

    Returns:
        The error of a command whose purpose was the output that was lost, else None. A reader that has closed its pipe
        has seen enough: that is no error.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    failure = _STATE.failure
    if failure is None or failure.errno == errno.EPIPE or _STATE.announced:
        return None
    what = f"Standard output cannot be written: {failure.strerror or type(failure).__name__}."
    return BenchError(what, "Send the output somewhere else, then give the same command again.", MISSING)


def exit_code(code: int | str | None, lost_output: BenchError | None) -> int | str | None:
    """Return the process's exit code: that of the command, unless it succeeded and its output was lost."""
    return lost_output.code if lost_output is not None and code in (None, DONE) else code

"""Standard output and standard error of the program: a stream that fails never stops the work behind it.

A pipe that its reader has closed, a full disk behind a redirection or a terminal that is gone make every write raise.
Here the first failure is remembered, what is written from then on goes nowhere, and nothing is raised.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from lora_bench.errors import DONE, MISSING, BenchError
from lora_bench.text import clean


class Shielded:
    """A text stream that raises nothing when it cannot be written; `failure` is the first error."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        """Write, or drop the text."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._failed(error)
            return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each line, or drop it."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush, or drop what was buffered."""
        try:
            self._stream.flush()
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        if self.failure is None:
            self.failure = error
            with suppress(OSError, ValueError):  # what is buffered is flushed when the interpreter ends
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)
            _STATE.announce()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _State:
    """The program's standard output, and what is said on standard error when it fails while work goes on."""

    def __init__(self) -> None:
        self.output: Shielded | None = None
        self.notice: str | None = None
        self.announced = False

    @property
    def failure(self) -> OSError | None:
        return None if self.output is None else self.output.failure

    def announce(self) -> None:
        if self.failure is not None and self.notice is not None and not self.announced:
            self.announced = True
            reason = self.failure.strerror or type(self.failure).__name__
            print(clean(f"Standard output cannot be written ({reason}): {self.notice}"), file=sys.stderr, flush=True)


_STATE = _State()


def protect() -> None:
    """Shield the program's standard streams; a descriptor that is closed is opened on the null device."""
    for number in range(3):  # else the next file that is opened would get the number, and the output of libraries
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if isinstance(sys.stdout, Shielded):
        return
    if sys.stderr is not None:
        sys.stderr = cast(TextIO, Shielded(sys.stderr))
    if sys.stdout is not None:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")
        _STATE.output = Shielded(sys.stdout)
        sys.stdout = cast(TextIO, _STATE.output)


@contextmanager
def going_on(notice: str) -> Iterator[None]:
    """Within: work whose point is not its output; `notice` is said on standard error if standard output fails."""
    _STATE.notice = notice
    _STATE.announce()
    try:
        yield
    finally:
        if _STATE.output is not None:
            _STATE.output.flush()
        _STATE.notice = None


def failed() -> bool:
    """Whether standard output could not be written."""
    return _STATE.failure is not None


def closing() -> BenchError | None:
    """Flush the streams for the last time; the error of a command whose point was an output that was lost.

    A reader that has closed its pipe has what it wanted: that is no error.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    failure = _STATE.failure
    if failure is None or failure.errno == errno.EPIPE or _STATE.announced:
        return None
    what = f"Standard output cannot be written: {failure.strerror or type(failure).__name__}."
    return BenchError(what, "Send the output somewhere else, then give the same command again.", MISSING)


def exit_code(code: int | str | None, error: BenchError | None) -> int | str | None:
    """The process's exit code: that of the command, unless it went well and its output was lost."""
    return error.code if error is not None and code in (None, DONE) else code

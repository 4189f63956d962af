"""The error that users see, one line that says what is wrong and one that says how to fix it; the stop by a signal."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from lora_bench.text import clean

# Exit codes: done; some cells failed; wrong use; model, data or environment; nothing to report; interrupted.
DONE, SOME_FAILED, USAGE, MISSING, NOTHING, INTERRUPTED = 0, 1, 2, 3, 4, 130


class BenchError(Exception):
    """An error that the user can fix.

    Attributes:
        what: What is wrong, on one printable line.
        hint: How to fix it, on one printable line.
        code: The exit code of the process (docs/guide.md).
    """

    def __init__(self, what: str, hint: str, code: int = USAGE) -> None:
        self.what = clean(what)
        self.hint = clean(hint)
        super().__init__(self.what)
        self.code = code

    def __str__(self) -> str:
        return f"{self.what}\n{self.hint}"


class StopRequested(KeyboardInterrupt):
    """A signal has asked to stop (`run.signals.Stopper`)."""


def stop_within(error: BaseException) -> StopRequested | None:
    """Return the stop that an exception is, or that it was raised in place of; None if there is none."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        if isinstance(link, StopRequested):
            return link
        seen.add(id(link))
        link = link.__cause__ or link.__context__
    return None


_AGAIN = "then give the same command again."
_HINTS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), f"Make room on that disk, {_AGAIN}"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), f"Allow this user to read and write there, {_AGAIN}"),
    **dict.fromkeys(
        (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP),
        "That file system does not do this (are locks off?): put the folder on another one.",
    ),
    **dict.fromkeys((errno.EIO, errno.ESTALE), f"The disk or its server failed: repair that, {_AGAIN}"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), f"Raise the limit of open files (ulimit -n), {_AGAIN}"),
}


def of_the_system(error: OSError) -> BenchError:
    """Return the error for what the operating system refused, with the name of the file."""
    file = f": '{error.filename}'" if error.filename else ""
    hint = _HINTS.get(error.errno or 0, f"Correct that, {_AGAIN}")
    return BenchError(f"{error.strerror or type(error).__name__}{file}.", hint, MISSING)


@contextmanager
def rust_panics() -> Iterator[None]:
    """Turn a panic of a library written in Rust, which is not an `Exception`, into a RuntimeError with its message."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # the class cannot be imported: each library has its own
            raise
        raise RuntimeError(str(error)) from error


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a sentence with the name that is most similar to `name`, or with all of them if none is similar."""
    options = sorted(known)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    return f"Did you mean '{close[0]}'?" if close else f"Known: {', '.join(options)}."


def unknown(kind: str, name: str, known: Iterable[str]) -> BenchError:
    """Return the error for a name that is not among `known`.

    Args:
        kind: What the name is of, such as `task`.
        name: The name that was given.
        known: The names that exist.
    """
    return BenchError(f"Unknown {kind} '{name}'.", nearest(name, known))


def described(error: BaseException) -> str:
    """Return an error's type and its message, if it has one, on one line."""
    return ": ".join(filter(None, [type(error).__name__, " ".join(str(error).split())]))


def one_line(error: BaseException) -> str:
    """Return an error's message on one line of at most 200 characters."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"

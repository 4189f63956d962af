"""Where this machine's tokens and measurements are kept."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

VARIABLE = "XDG_CACHE_HOME"  # read by the libraries too that keep what they have downloaded


def settle() -> str:
    """Give a process without a home folder a temporary one for caches; what to tell the user of it, or nothing.

    A container may run under a user id that has no name, and without HOME. A folder of a fixed name is taken only if
    it is this user's alone: others must not put tokens there.
    """
    if os.environ.get(VARIABLE) or _home() is not None:
        return ""
    folder = Path(tempfile.gettempdir()) / f"lora-bench-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        about = folder.lstat()
        if about.st_uid != os.getuid() or about.st_mode & 0o077 or folder.is_symlink():
            raise PermissionError(folder)
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="lora-bench-"))
    os.environ[VARIABLE] = str(folder)
    os.environ.setdefault("XDG_CONFIG_HOME", str(folder))
    return f"Note: there is no home folder, so caches are in {folder}. Set HOME or {VARIABLE} to keep them."


def folder() -> Path:
    """Where tokens are kept."""
    settle()
    base = os.environ.get(VARIABLE)
    return (Path(base) if base else Path.home() / ".cache") / "lora-bench"


def calibration() -> Path:
    """What `bench --calibrate` measured of this machine's devices."""
    return folder() / "devices.json"


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:
        return None

"""The folder for this machine's caches: tokenised data and measured device coefficients."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "XDG_CACHE_HOME"  # also read by the libraries that cache their downloads


def ensure_cache_home() -> str:
    """Give a process without a home folder a temporary one for caches.

    A container may run under a user id that has no name, and without HOME. A folder with a predictable name is used
    only if this user alone can write to it: others must not be able to plant tokens there.

    Returns:
        A note for the user, or an empty string where nothing had to be done.
    """
    if os.environ.get(VARIABLE) or _home() is not None:
        return ""
    import tempfile  # loads `random` and `shutil`; hardly any process gets here

    folder = Path(tempfile.gettempdir()) / f"lora-bench-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if status.st_uid != os.getuid() or status.st_mode & 0o077 or folder.is_symlink():
            raise PermissionError(folder)
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="lora-bench-"))
    os.environ[VARIABLE] = str(folder)
    os.environ.setdefault("XDG_CONFIG_HOME", str(folder))
    return f"Note: there is no home folder, so caches are in {folder}. Set HOME or {VARIABLE} to keep them."


def cache_folder() -> Path:
    """Return the folder of tokenised data."""
    ensure_cache_home()
    base = os.environ.get(VARIABLE)
    return (Path(base) if base else Path.home() / ".cache") / "lora-bench"


def calibration_file() -> Path:
    """Return the file of the coefficients that `bench --calibrate` measured on this machine's devices."""
    return cache_folder() / "devices.json"


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:
        return None

"""The configs that come with the package. Nothing is parsed here, so that shell completion is fast."""

from __future__ import annotations

from pathlib import Path

from lora_bench.errors import unknown


def presets() -> dict[str, Path]:
    """Return the config files by name: `configs/` of a checkout, or the copy in an installed package."""
    package = Path(__file__).parents[1]
    checkout = package.parent
    folders = [package / "configs"]
    if (checkout / "pyproject.toml").is_file():
        folders.append(checkout / "configs")
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def find_preset(name: str) -> Path:
    """Return the file of a preset.

    Raises:
        BenchError: Exit code 2 if there is none with that name; the hint names the nearest one.
    """
    known = presets()
    if name not in known:
        raise unknown("preset", name, known)
    return known[name]

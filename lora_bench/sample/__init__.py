"""The bundled sample: nine GLUE-shaped synthetic tasks and a tiny encoder, for runs without a network.

Everything here is made by `python -m lora_bench.sample.make` from the grammar in this folder. See README.md.
"""

from __future__ import annotations

from pathlib import Path

ROOT: Path = Path(__file__).parent
ENCODER: Path = ROOT / "encoder"
DATA: Path = ROOT / "data"

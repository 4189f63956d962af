"""The bundled sample: nine synthetic tasks in the form of GLUE and a tiny encoder, for runs without a network.

`python -m lora_bench.sample.make` generates everything here from the grammar in this folder. See README.md.
"""

from __future__ import annotations

from pathlib import Path

ROOT: Path = Path(__file__).parent
ENCODER: Path = ROOT / "encoder"
DATA: Path = ROOT / "data"

"""Building blocks for tests of methods, of tasks and of this package: tiny encoders, data, cells, records and runs.

Everything is random but the same every time, needs no network and takes seconds on a CPU. A test that trains two
methods, in an empty folder:

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from lora_bench.testing import TinyBench, make_cell

    >>> with TemporaryDirectory() as folder:
    ...     bench = TinyBench.create(Path(folder), "sst2")
    ...     lora, head = bench.run([{"method": "lora", "rank": [2]}, {"method": "head"}], epochs=1)
    >>> lora.status, lora.metric, lora.cell.rank
    ('done', 'accuracy', 2)
    >>> lora.counts.adapter_params > head.counts.adapter_params
    True

    >>> make_cell("lora-fa", rank=8).method  # settings that a method does not have are left out
    'lora-fa'

To test a method or a task of your own, include its file first, as `--include` does:
`lora_bench.methods.include(Path("mine.py"))`. Within `with lora_bench.methods.registered():` (or `tasks.registered()`)
it is registered only until the block ends. A recipe or a task that the test itself builds is an argument:
`with methods.registered(recipe):`. With pytest, `tmp_path` is the folder. `lora-bench check mine.py` tests a method's
contracts.

Nothing here imports torch or transformers before it is called.
"""

from __future__ import annotations

from lora_bench.testing.cells import make_cell
from lora_bench.testing.data import TRAIN_ROWS, VALIDATION_ROWS, WORDS, make_data, make_tokens
from lora_bench.testing.encoders import (
    FAMILIES,
    NO_DROPOUT,
    PADDING,
    REFUSED_FAMILIES,
    make_config,
    make_encoder,
    make_model,
)
from lora_bench.testing.records import make_epochs, make_record
from lora_bench.testing.runs import Blocks, QuietView, TinyBench, assert_same_numbers, by_cell

__all__ = [
    "FAMILIES",
    "NO_DROPOUT",
    "PADDING",
    "REFUSED_FAMILIES",
    "TRAIN_ROWS",
    "VALIDATION_ROWS",
    "WORDS",
    "Blocks",
    "QuietView",
    "TinyBench",
    "assert_same_numbers",
    "by_cell",
    "make_cell",
    "make_config",
    "make_data",
    "make_encoder",
    "make_epochs",
    "make_model",
    "make_record",
    "make_tokens",
]

"""The card of a results folder on the Hub: what the records are of, and how to read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lora_bench.records import archive
from lora_bench.records.schema import Record
from lora_bench.records.store import CSV
from lora_bench.text import clean, counted


def results_card(records: Sequence[Record], repo: str) -> str:
    """Return the card of a dataset repository with an archive and its table.

    Args:
        records: The records of the archive.
        repo: The repository's name.
    """
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(
        # Of the results; it is never invented. The data that were trained on have their own.
        license="other",
        pretty_name=f"lora-bench results: {repo.partition('/')[2]}",
        tags=["lora-bench", "peft", "evaluation"],
        configs=[{"config_name": "default", "data_files": CSV}],
    )
    models, sources, tasks, methods = (
        _listed(Counter(getattr(record.cell, name) for record in records))
        for name in ("model", "data", "task", "method")
    )
    statuses = ", ".join(f"{count} {status}" for status, count in Counter(r.status for r in records).most_common())
    versions = _listed(Counter(record.environment.get("lora_bench", "?") for record in records))
    return f"""---
{data.to_yaml().strip()}
---

# Results of lora-bench

{counted(len(records), "cell")} ({statuses}): training runs of adapters over a frozen encoder.

- Models: {models}
- Data: {sources}
- Tasks: {tasks}
- Methods: {methods}
- lora-bench {versions}

`{CSV}` has a row per cell. `{archive.NAME}` has the whole records: settings, metrics of every epoch, predictions,
counts, times and versions. To read them, put both in a folder:

```python
from huggingface_hub import snapshot_download
import lora_bench

folder = snapshot_download("{repo}", repo_type="dataset")
cells = lora_bench.load_records(folder)
report = lora_bench.load_report(folder)
```

Licence not known: set `license:` above yourself; a card that was edited is kept. Models and data have their own.
"""


def _listed(values: Counter[str], most: int = 30) -> str:
    """List values as code, those that are most frequent first."""
    names = [f"`{clean(name).replace('`', '')}`" for name, _ in values.most_common(most)]
    return ", ".join(names) + (f" and {len(values) - most} more" if len(values) > most else "")

"""GLUE from the Hugging Face Hub, at one pinned revision; without a network it says so within seconds.

`datasets` alone tries for half a minute before it gives up, hence the knock at the Hub's door before it is called.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lora_bench.data.sources import Raw, Rows, checked, first_line, from_table
from lora_bench.errors import MISSING, BenchError
from lora_bench.tasks import HUB_ID, HUB_REVISION, Task

REACH_SECONDS = 5.0


def read_hub(task: Task, offline: bool) -> dict[str, Rows]:
    """Every split of a task from the Hub at the pinned revision, or from the copy that `datasets` keeps of it.

    Raises BenchError (code 3) within seconds when there is neither network nor copy.
    """
    splits = _splits(task, offline)
    return {split: checked(_from_hub(splits, task, split), task) for split in task.splits}


def read_hub_test(task: Task, split: str, offline: bool) -> Any:
    """A test split from the same place as an Arrow table; its labels are hidden (-1)."""
    return _of_revision(_splits(task, offline), task, split)


def _splits(task: Task, offline: bool) -> Any:
    import datasets  # type: ignore[import-untyped, unused-ignore]

    why = _out_of_reach(offline)
    with hub_mode(bool(why)):
        try:
            return datasets.load_dataset(HUB_ID, task.name, revision=HUB_REVISION)
        except Exception as error:  # the Hub's clients raise from several families, which change between versions
            raise _no_hub(task, why or first_line(error)) from error


def _out_of_reach(offline: bool) -> str:
    """Why the Hub is not asked, or nothing when it answers."""
    import datasets
    from huggingface_hub import constants

    if offline or constants.HF_HUB_OFFLINE or datasets.config.HF_HUB_OFFLINE:
        return "offline, and no copy of it is kept on this machine"
    return "" if reachable() else "the Hub does not answer, and no copy of it is kept on this machine"


def _no_hub(task: Task, why: str) -> BenchError:
    hint = (
        "Try `--preset smoke` (bundled encoder and data), or give local copies: `--model DIR` and "
        "`--data-dir DIR` (a folder <task>/{train,validation}.parquet, .jsonl or GLUE's .tsv)."
    )
    return BenchError(f"Cannot load {task.name} of {HUB_ID} from the Hugging Face Hub ({why}).", hint, MISSING)


def _from_hub(splits: Mapping[str, Any], task: Task, split: str) -> Raw:
    return from_table(_of_revision(splits, task, split), task, f"{HUB_ID}/{task.name}/{split}")


def _of_revision(splits: Mapping[str, Any], task: Task, split: str) -> Any:
    """A split as an Arrow table."""
    data = splits[split]
    for file in data.cache_files:
        # Without the Hub, `datasets` takes the latest copy, of whatever revision; the folder is named by the revision.
        revision = Path(file["filename"]).parent.name
        if re.fullmatch("[0-9a-f]{40}", revision) and revision != HUB_REVISION:
            raise _no_hub(task, f"the copy on this machine is of revision {revision[:8]}, not {HUB_REVISION[:8]}")
    return data.with_format("arrow")[:]


def _knock() -> None:
    """One small request to the Hub, without the client's minute of retries. Raises whatever that client raises."""
    from huggingface_hub import constants, get_session

    get_session().head(constants.ENDPOINT, timeout=REACH_SECONDS)


def reachable(knock: Callable[[], None] | None = None) -> bool:
    """Whether `knock` returns in time. In a thread, as looking up a name cannot be given a timeout."""
    answers: list[bool] = []

    def call() -> None:
        with suppress(Exception):  # any failure at all means: not reachable
            (knock or _knock)()
            answers.append(True)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(REACH_SECONDS + 1)
    return bool(answers)


@contextmanager
def hub_mode(offline: bool) -> Iterator[None]:
    """The clients' offline switches on inside the block if `offline`; the environment's own setting stays.

    `datasets` takes a second to import: its switch is set only if it is imported, as by who reads with it.
    """
    from huggingface_hub import constants

    clients = [constants, *([sys.modules["datasets"].config] if "datasets" in sys.modules else [])]
    before = [client.HF_HUB_OFFLINE for client in clients]
    try:
        for client in clients if offline else []:
            client.HF_HUB_OFFLINE = True
        yield
    finally:
        for client, value in zip(clients, before, strict=True):
            client.HF_HUB_OFFLINE = value

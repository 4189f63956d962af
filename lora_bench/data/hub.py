"""Datasets from the Hugging Face Hub, each at one revision; without a network it says so within seconds.

`datasets` alone tries for half a minute before it gives up, hence the knock at the Hub's door before it is called.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

from lora_bench.data.content import first_line
from lora_bench.data.formats import Raw, from_table
from lora_bench.data.sources import Rows, checked
from lora_bench.errors import MISSING, BenchError
from lora_bench.tasks.glue import HUB_ID, HUB_REVISION
from lora_bench.tasks.task import Hub, Task

REACH_SECONDS = 5.0
_SILENT = "the Hub does not answer"


def read_hub(task: Task, offline: bool) -> dict[str, Rows]:
    """Every split of a task from the Hub at its source's revision, or from the copy that `datasets` keeps of it.

    Raises BenchError (code 3) within seconds when there is neither network nor copy.
    """
    splits = _splits(task, offline)
    names = _source(task).splits
    return {split: checked(_raw(splits, task, names.get(split, split), labelled=True), task) for split in task.splits}


def read_hub_test(task: Task, split: str, offline: bool) -> Raw:
    """The columns of a test split from the same source, unchecked; its labels are hidden (-1) and not read."""
    return _raw(_splits(task, offline), task, split, labelled=False)


def _source(task: Task) -> Hub:
    assert isinstance(task.source, Hub)  # who has files is read by `sources`
    return task.source


def _splits(task: Task, offline: bool) -> Any:
    import datasets  # type: ignore[import-untyped, unused-ignore]

    source, why = _source(task), _out_of_reach(offline)
    config = () if source.config is None else (source.config,)
    with hub_mode(bool(why)):
        try:
            return datasets.load_dataset(source.id, *config, revision=source.revision)
        except Exception as error:  # the Hub's clients raise from several families, which change between versions
            raise _no_hub(task, why or first_line(error)) from error


def _out_of_reach(offline: bool) -> str:
    """Why the Hub is not asked, or nothing when it answers."""
    import datasets
    from huggingface_hub import constants

    if offline or constants.HF_HUB_OFFLINE or datasets.config.HF_HUB_OFFLINE:
        return "offline, and no copy of it is kept on this machine"
    why = trouble()
    return f"{why}, and no copy of it is kept on this machine" if why else ""


def _no_hub(task: Task, why: str) -> BenchError:
    hint = (
        "Try `--preset smoke` (bundled encoder and data), or give local copies: `--model DIR` and "
        "`--data-dir DIR` (a folder <task>/{train,validation}.parquet, .jsonl, .csv or GLUE's .tsv)."
    )
    what = f"Cannot load {task.name} of {_source(task).id} from the Hugging Face Hub ({why})."
    return BenchError(what, hint, MISSING)


def _raw(splits: Mapping[str, Any], task: Task, split: str, labelled: bool) -> Raw:
    source = _source(task)
    if split not in splits:
        hint = f"Its splits are {', '.join(map(str, splits))}: name them in the task's source."
        raise BenchError(f"{source} has no split '{split}'.", hint, MISSING)
    names = getattr(splits[split].features.get(source.label), "names", None) or ()
    return from_table(_of_revision(splits, task, split), task, f"{source}/{split}", labelled, names)


def _of_revision(splits: Mapping[str, Any], task: Task, split: str) -> Any:
    """A split as an Arrow table."""
    data, wanted = splits[split], _source(task).revision
    for file in data.cache_files:
        # Without the Hub, `datasets` takes the latest copy, of whatever revision; the folder is named by the revision.
        revision = Path(file["filename"]).parent.name
        if re.fullmatch("[0-9a-f]{40}", revision) and revision != wanted:
            raise _no_hub(task, f"the copy on this machine is of revision {revision[:8]}, not {wanted[:8]}")
    return data.with_format("arrow")[:]


def _knock() -> None:
    """One request to the Hub as its clients make them, without their minute of retries. Raises what they raise."""
    from huggingface_hub import HfApi, constants

    HfApi(endpoint=constants.ENDPOINT).dataset_info(HUB_ID, revision=HUB_REVISION, timeout=REACH_SECONDS)


def reachable(knock: Callable[[], None] | None = None) -> bool:
    """Whether the Hub answers `knock` in time, and as the Hub does."""
    return not trouble(knock)


def trouble(knock: Callable[[], None] | None = None) -> str:
    """Why the Hub is of no use now, or nothing when it answers. In a thread: to look up a name knows no timeout."""
    answers: list[str] = []

    def call() -> None:
        try:
            (knock or _knock)()
            answers.append("")
        except Exception as error:
            answers.append(_refusal(error))

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(REACH_SECONDS + 1)
    return answers[0] if answers else _SILENT


def _refusal(error: Exception) -> str:
    """What is wrong when `error` is all that came of a request; nothing if the Hub has answered all the same."""
    response = getattr(error, "response", None)
    if response is not None:
        status = f"{response.status_code} {response.reason_phrase}".strip()
        # What the Hub says with a code of its own, or to come later, is for its clients to make sense of.
        its_own = "X-Error-Code" in response.headers or response.status_code == HTTPStatus.TOO_MANY_REQUESTS
        return "" if its_own else f"the Hub's address answers {status}"
    if isinstance(error, ValueError | TypeError | KeyError):  # no JSON, or none of the Hub's
        return "the Hub's address answers with something else, as a proxy's or a login's page"
    return _SILENT


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

"""Reads datasets from the Hugging Face Hub, each at one revision, and fails within seconds without a network.

`datasets` retries for half a minute before it fails, hence one request with a short timeout is made before.
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
from lora_bench.data.formats import Raw, read_table
from lora_bench.data.sources import Rows, to_rows
from lora_bench.errors import MISSING, BenchError
from lora_bench.tasks.glue import HUB_ID, HUB_REVISION
from lora_bench.tasks.task import Hub, Task

TIMEOUT = 5.0  # seconds for one request to the Hub (chosen)
_NO_ANSWER = "the Hub does not answer"


def read_hub(task: Task, offline: bool) -> dict[str, Rows]:
    """Return all splits of a task from the Hub at its source's revision, or from the local copy that `datasets` keeps.

    Raises:
        BenchError: Exit code 3, within seconds, if there is neither a network nor a copy.
    """
    splits = _splits(task, offline)
    names = _source(task).splits
    return {split: to_rows(_raw(splits, task, names.get(split, split), labelled=True), task) for split in task.splits}


def read_hub_test(task: Task, split: str, offline: bool) -> Raw:
    """Return the columns of a test split, not checked yet and without labels, which are hidden (-1)."""
    return _raw(_splits(task, offline), task, split, labelled=False)


def _source(task: Task) -> Hub:
    assert isinstance(task.source, Hub)  # tasks with files are read by `sources`
    return task.source


def _splits(task: Task, offline: bool) -> Any:
    import datasets  # type: ignore[import-untyped, unused-ignore]

    source, why = _source(task), _why_unreachable(offline)
    config = () if source.config is None else (source.config,)
    with hub_mode(bool(why)):
        try:
            return datasets.load_dataset(source.id, *config, revision=source.revision)
        except Exception as error:  # the Hub's clients raise from several families, which change between versions
            raise _load_error(task, why or first_line(error)) from error


def _why_unreachable(offline: bool) -> str:
    """Why the Hub cannot be used; empty if it answers."""
    import datasets
    from huggingface_hub import constants

    if offline or constants.HF_HUB_OFFLINE or datasets.config.HF_HUB_OFFLINE:
        return "offline, and no copy of it is kept on this machine"
    why = problem()
    return f"{why}, and no copy of it is kept on this machine" if why else ""


def _load_error(task: Task, why: str) -> BenchError:
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
    return read_table(_of_revision(splits, task, split), task, f"{source}/{split}", labelled, names)


def _of_revision(splits: Mapping[str, Any], task: Task, split: str) -> Any:
    """A split as an Arrow table, after a check of its revision."""
    data, expected = splits[split], _source(task).revision
    for file in data.cache_files:
        # Offline, `datasets` takes its latest copy, of any revision. The folder of the copy has the revision's name.
        revision = Path(file["filename"]).parent.name
        if re.fullmatch("[0-9a-f]{40}", revision) and revision != expected:
            raise _load_error(task, f"the copy on this machine is of revision {revision[:8]}, not {expected[:8]}")
    return data.with_format("arrow")[:]


def _request() -> None:
    """Make one request to the Hub with its own client but without retries. Raises the client's exceptions."""
    from huggingface_hub import HfApi, constants

    HfApi(endpoint=constants.ENDPOINT).dataset_info(HUB_ID, revision=HUB_REVISION, timeout=TIMEOUT)


def reachable(request: Callable[[], None] | None = None) -> bool:
    """Return whether the Hub answers in time; `request` replaces the request in tests."""
    return not problem(request)


def problem(request: Callable[[], None] | None = None) -> str:
    """Return why the Hub cannot be used now; empty if it answers. `request` replaces the request in tests.

    The request runs in a thread since looking up a host name has no timeout.
    """
    results: list[str] = []

    def call() -> None:
        try:
            (request or _request)()
            results.append("")
        except Exception as error:
            results.append(_describe(error))

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(TIMEOUT + 1)
    return results[0] if results else _NO_ANSWER


def _describe(error: Exception) -> str:
    """Describe why a request failed; empty if the error is an answer of the Hub itself."""
    response = getattr(error, "response", None)
    if response is not None:
        status = f"{response.status_code} {response.reason_phrase}".strip()
        # The Hub's own error codes and its rate limit are left to its clients, which handle them.
        is_of_hub = "X-Error-Code" in response.headers or response.status_code == HTTPStatus.TOO_MANY_REQUESTS
        return "" if is_of_hub else f"the Hub's address answers {status}"
    if isinstance(error, ValueError | TypeError | KeyError):  # not JSON, or JSON of something else
        return "the Hub's address answers with something else, as a proxy's or a login's page"
    return _NO_ANSWER


@contextmanager
def hub_mode(offline: bool) -> Iterator[None]:
    """Turn on the offline mode of the Hub's clients during the block if `offline`.

    Without `offline`, the setting of the environment stays. The switch of `datasets` is set only if it is imported
    already, since importing it takes a second.
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

"""Pushes files to a repository of the Hugging Face Hub, as one commit: all of them arrive, or none.

A new repository is private unless it is asked to be public. The library for the Hub is imported when it is needed.

A dataset's card (README.md) is pushed again and again, while its readers are asked to complete it. It ends with a hash
of itself, so that one that was edited on the Hub is seen, and kept.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

from lora_bench.errors import MISSING, USAGE, BenchError
from lora_bench.text import clean, discreet

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Kind = Literal["model", "dataset"]
_OF_THE_HUB = frozenset({".gitattributes"})  # files that the Hub makes
CARD = "README.md"
_SEAL = re.compile(r"<!-- lora-bench ([0-9a-f]{16}) -->\s*\Z")
_LOGIN = "Log in with `hf auth login`, or set HF_TOKEN to a token that may write."


def files_of(folder: Path) -> dict[str, Path]:
    """Return the files of a folder by their names in a repository."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {path.relative_to(folder).as_posix(): path for path in paths}


def sealed_card(text: str) -> str:
    """Return a card that ends with a hash of itself: an invisible comment."""
    return f"{text}\n<!-- lora-bench {_digest(text)} -->\n"


def _is_edited(card: str) -> bool:
    """Whether a card is not as `sealed_card` has returned it."""
    seal = _SEAL.search(card)
    return seal is None or _digest(card[: seal.start()]) != seal[1]


def _digest(text: str) -> str:
    """Hash a text, whatever its line ends are."""
    return hashlib.sha256("\n".join(text.rstrip().splitlines()).encode()).hexdigest()[:16]


def check_options(repo: str | None, public: bool, offline: bool = False) -> None:
    """Refuse what cannot be pushed to, before anything is computed.

    Raises:
        BenchError: Exit code 2 for a wrong name, without a network, or if nothing is to be pushed and yet `public`.
    """
    if repo is not None:
        check_name(repo, offline)
    elif public:
        raise BenchError("--public is for a repository of the Hub.", "Give --push owner/name too.", USAGE)


def check_name(repo: str, offline: bool = False) -> None:
    """Refuse a name that cannot be pushed to.

    Raises:
        BenchError: Exit code 2 if `repo` is not `owner/name`, or the network may not be used.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # exported, without saying so

    if offline or constants.HF_HUB_OFFLINE:
        raise BenchError("--push needs the network.", "Leave --offline and HF_HUB_OFFLINE out.", USAGE)
    try:
        validate_repo_id(repo)
        is_valid = repo.count("/") == 1
    except HFValidationError:
        is_valid = False
    if not is_valid:
        raise BenchError(f"'{repo}' is not the name of a repository.", "Give --push owner/name.", USAGE)


def push(
    repo: str,
    files: Mapping[str, Path | bytes],
    kind: Kind,
    message: str,
    public: bool = False,
    beside: bool = False,
) -> str:
    """Commit files to a repository, which is created if it is not there, and return its address.

    Args:
        repo: The repository, `owner/name`.
        files: The files by their names in it.
        kind: What the repository is.
        message: The message of the commit.
        public: Whether a new repository is public. One that exists stays as it is.
        beside: Whether other files may be in the repository, and a card that was edited there is kept. Else it is
            refused, since what loads a model would find parts of two.

    Returns:
        The address, and whether a card there was kept, in words.

    Raises:
        BenchError: Exit code 3 if the Hub refuses or cannot be reached. Nothing has changed then in a repository that
            was there before.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, constants

    api = HfApi(endpoint=constants.ENDPOINT, library_name="lora-bench")
    try:
        url = api.create_repo(repo, repo_type=kind, private=not public, exist_ok=True)
        head, names = _head(api, repo, kind)
        others = sorted(names - files.keys() - _OF_THE_HUB)
        if others and not beside:
            raise _holds_others(repo, others)
        is_kept = beside and CARD in files and CARD in names and _is_edited(_card(api, repo, kind, head))
        # Were the branch to move meanwhile, `parent_commit` would have the commit refused.
        operations = [
            CommitOperationAdd(name, content) for name, content in files.items() if not (is_kept and name == CARD)
        ]
        api.create_commit(repo, operations, repo_type=kind, commit_message=message, parent_commit=head, revision="main")
    except BenchError:
        raise
    except Exception as error:  # the Hub's client raises from several families, which change between versions
        raise _refusal(error, repo) from error
    return f"{url} (its {CARD} was edited there, and is kept)" if is_kept else str(url)


class OtherFilesError(BenchError):
    """A repository of a model holds files of something else."""


def _holds_others(repo: str, names: Sequence[str]) -> OtherFilesError:
    shown = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
    hint = "Give the name of a new repository, or remove these files there."
    return OtherFilesError(f"'{repo}' holds other files already: {clean(shown)}.", hint, MISSING)


def _head(api: HfApi, repo: str, kind: Kind) -> tuple[str | None, frozenset[str]]:
    """Return the last commit of the repository and the names of its files."""
    info = api.dataset_info(repo, revision="main") if kind == "dataset" else api.model_info(repo, revision="main")
    return info.sha, frozenset(sibling.rfilename for sibling in info.siblings or ())


def _card(api: HfApi, repo: str, kind: Kind, head: str | None) -> str:
    """Return the card of the repository."""
    with TemporaryDirectory() as folder:
        path = api.hf_hub_download(repo, CARD, repo_type=kind, revision=head, local_dir=folder)
        return Path(path).read_text(encoding="utf-8", errors="replace")


def _refusal(error: Exception, repo: str) -> BenchError:
    """Return the error for what the Hub, its client or the network says."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401 or type(error).__name__ == "LocalTokenNotFoundError":
        return BenchError("The Hub accepts no token of yours.", _LOGIN, MISSING)
    if status == 403:
        return BenchError(f"Your token may not write to '{repo}'.", _LOGIN, MISSING)
    if status in (409, 412):
        hint = "Look at what is there, then push again."
        return BenchError(f"'{repo}' was changed by somebody else meanwhile; nothing was pushed.", hint, MISSING)
    lines = getattr(error, "server_message", None) or str(error).partition("\n")[0]  # the Hub's own words, if any
    reason = discreet(clean(lines))[:200] or type(error).__name__
    hint = f"What was written here is whole. A push is one commit: '{repo}' has all of it or nothing; push again."
    return BenchError(f"The push broke off: {reason.rstrip('.')}.", hint, MISSING)

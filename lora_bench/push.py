"""Pushes files to a repository of the Hugging Face Hub, as one commit: either all of them arrive or none.

A new repository is private unless the user asks for a public one. The Hub's library is imported only when it is needed.

The card (README.md) of a dataset is written anew for every push, but it also asks its owner to complete it on the Hub.
So it ends with a hash of itself, which shows whether it was edited there; an edited card is kept.
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
_HUB_FILES = frozenset({".gitattributes"})  # what the Hub itself adds to a repository
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
    """Return whether a card differs from what `sealed_card` returned."""
    seal = _SEAL.search(card)
    return seal is None or _digest(card[: seal.start()]) != seal[1]


def _digest(text: str) -> str:
    """Hash a text; its line ends do not count."""
    return hashlib.sha256("\n".join(text.rstrip().splitlines()).encode()).hexdigest()[:16]


def check_options(repo: str | None, public: bool, offline: bool = False) -> None:
    """Refuse what cannot be pushed to, before anything is computed.

    Raises:
        BenchError: Exit code 2 for a wrong name, if the network may not be used, or for `public` without a repository.
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
    allow_other_files: bool = False,
) -> str:
    """Commit files to a repository, and create it if there is none.

    Args:
        repo: The repository, `owner/name`.
        files: The files by their names in it.
        kind: What the repository is.
        message: The message of the commit.
        public: Whether a new repository is public. One that exists stays as it is.
        allow_other_files: Whether the repository may hold other files; a card that was edited there is then kept.
            Otherwise such a repository is refused, since a library that loads the model would find parts of two models.

    Returns:
        The repository's address; where an edited card was kept, a remark that says so follows.

    Raises:
        BenchError: Exit code 3 if the Hub refuses or cannot be reached. Nothing has changed then in a repository that
            existed before.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, constants

    api = HfApi(endpoint=constants.ENDPOINT, library_name="lora-bench")
    try:
        url = api.create_repo(repo, repo_type=kind, private=not public, exist_ok=True)
        head, names = _head(api, repo, kind)
        others = sorted(names - files.keys() - _HUB_FILES)
        if others and not allow_other_files:
            raise _holds_others(repo, others)
        is_kept = allow_other_files and CARD in files and CARD in names and _is_edited(_card(api, repo, kind, head))
        # With `parent_commit` the Hub refuses the commit if the branch has moved since `_head`.
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
    """The repository to which a model is pushed already holds other files."""


def _holds_others(repo: str, names: Sequence[str]) -> OtherFilesError:
    shown = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
    hint = "Give the name of a new repository, or remove these files there."
    return OtherFilesError(f"'{repo}' holds other files already: {clean(shown)}.", hint, MISSING)


def _head(api: HfApi, repo: str, kind: Kind) -> tuple[str | None, frozenset[str]]:
    """Return the last commit of the repository, and the names of its files."""
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

"""The integrity envelope of every JSON document in a results folder: records, saved adapters and checkpoints.

`seal` appends the CRC-32 of the document as its last field, and `unseal` verifies it. A document that belongs to other
files lists each of them with its size and SHA-256 (`describe`), which `read_companion` verifies. Both find damage; they
are no protection against somebody who wants to deceive.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from lora_bench.records.files import read_file

_FIELD = b',"crc32":"%08x"}\n'
_FIELD_LENGTH = len(_FIELD % 0)
_FIELD_START = _FIELD[: _FIELD.index(b"%")]
_WHITESPACE = b" \t\r\n"
NameT = TypeVar("NameT", bound=str)


class FileInfo(BaseModel):
    """The size and the checksum of a file as it was written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def seal(text: str) -> bytes:
    """Return the JSON text of an object, which must not be empty, as bytes with the checksum."""
    body = text.rstrip().removesuffix("}").rstrip().encode()
    return body + _FIELD % zlib.crc32(body)


def unseal(content: bytes) -> bytes:
    """Return the JSON text of the object without its checksum.

    Any kind of line end is accepted, since git on Windows makes CRLF of it, but there must be one.

    Raises:
        ValueError: The checksum is missing or wrong.
    """
    stripped = content.rstrip(_WHITESPACE)
    # The checksum was written with "\n"; without any line end the field below starts one byte early and is refused.
    whole = stripped + b"\n" if b"\n" in content[len(stripped) :] else content
    body, field = whole[:-_FIELD_LENGTH], whole[-_FIELD_LENGTH:]
    if not field.startswith(_FIELD_START):
        raise ValueError("it does not end with a checksum: the file was cut off, or has changed since")
    if field != _FIELD % zlib.crc32(body):
        raise ValueError("its checksum is wrong: the file has changed since it was written")
    return body + b"}"


def describe(contents: Mapping[NameT, bytes]) -> dict[NameT, FileInfo]:
    """Return what a document says of its companion files, by name."""
    return {
        name: FileInfo(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        for name, content in contents.items()
    }


def read_companion(path: Path, info: FileInfo, follow: bool = True) -> bytes:
    """Read a file that a document belongs to.

    Args:
        path: The file.
        info: What the document says of it.
        follow: Whether `path` may be a link.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not the file that was written.
    """
    content = read_file(path, follow)
    if describe({path.name: content}) != {path.name: info}:
        raise ValueError(f"{path.name} has changed since it was written")
    return content

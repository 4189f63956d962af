"""A JSON object that tells when a byte of it has changed: its last field is the CRC-32 of the bytes before.

A CRC finds every change of a few neighbouring bits; it is no proof against somebody who wants to deceive.
"""

from __future__ import annotations

import zlib

_FIELD = b',"crc32":"%08x"}\n'
_LONG = len(_FIELD % 0)
_BEGINS = _FIELD[: _FIELD.index(b"%")]


def seal(text: str) -> bytes:
    """The JSON text of an object that is not empty, as bytes with the checksum."""
    body = text.rstrip().removesuffix("}").rstrip().encode()
    return body + _FIELD % zlib.crc32(body)


def unseal(content: bytes) -> bytes:
    """The object without its checksum, or `content` as it is where the last field is none (files of 0.1.0.dev).

    Raises:
        ValueError: the checksum is not that of the content.
    """
    body, field = content[:-_LONG], content[-_LONG:]
    if not field.startswith(_BEGINS):
        return content
    if field != _FIELD % zlib.crc32(body):
        raise ValueError("its checksum is wrong: the file has changed since it was written")
    return body + b"}"

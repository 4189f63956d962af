"""A JSON object that tells when a byte of it has changed: its last field is the CRC-32 of the bytes before.

A CRC finds every change of a few neighbouring bits; it is no proof against somebody who wants to deceive.
"""

from __future__ import annotations

import zlib

_FIELD = b',"crc32":"%08x"}\n'
_LONG = len(_FIELD % 0)
_BEGINS = _FIELD[: _FIELD.index(b"%")]
_NAME = b'"crc32"'


_SPACE = b" \t\r\n"


def seal(text: str) -> bytes:
    """The JSON text of an object that is not empty, as bytes with the checksum."""
    body = text.rstrip().removesuffix("}").rstrip().encode()
    return body + _FIELD % zlib.crc32(body)


def unseal(content: bytes) -> bytes:
    """The object without its checksum, or `content` as it is where there is none (files of 0.1.0.dev).

    What ends the line does not matter, as long as something does: git on Windows makes CRLF of it.

    Raises:
        ValueError: the checksum is not that of the content, or not in its place.
    """
    bare = content.rstrip(_SPACE)
    whole = bare + b"\n" if b"\n" in content[len(bare) :] else content
    body, field = whole[:-_LONG], whole[-_LONG:]
    if not field.startswith(_BEGINS):
        if _NAME in content:
            raise ValueError("its checksum is not at its end: the file was cut off, or has changed since")
        return content
    if field != _FIELD % zlib.crc32(body):
        raise ValueError("its checksum is wrong: the file has changed since it was written")
    return body + b"}"

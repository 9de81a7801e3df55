"""How many pixels an encoded picture says that it has, and in how many scans: what decoding it would cost, unopened."""

from __future__ import annotations

import contextlib
import re
import struct
import typing

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG markers of frames, which begin with a size
_BARE = frozenset((0x01, *range(0xD0, 0xD8)))  # JPEG markers without a length
_SCAN, _END = 0xDA, 0xD9
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd8]")  # JPEG markers that end a scan's data
MAX_SCANS = 100  # of a JPEG: a decoder goes over all pixels in each, and a scan may have a few bytes
_BITMAP_HEADERS = (40, 52, 56, 64, 108, 124)


def num_pixels(content: bytes) -> int:
    """Returns the pixels of a PNG, JPEG or BMP, or of all frames of a GIF; 0 where there is no header to tell.

    >>> num_pixels(b"BM" + bytes(12) + struct.pack("<Iii", 40, 8000, 8000))
    64000000
    """
    try:
        return sum(width * height for width, height in _sizes(content))
    except (struct.error, IndexError):  # cut off: nothing to decode
        return 0


def num_scans(content: bytes) -> int:
    """Returns the scans of a JPEG, several where it is progressive; 0 of other pictures. It stops at `MAX_SCANS` + 1.

    >>> num_scans(b"\\xff\\xd8\\xff\\xda\\0\\2 pixels \\xff\\0 \\xff\\xda\\0\\2 more \\xff\\xd9 \\xff\\xda")
    2
    """
    place, scans = 2 if content.startswith(b"\xff\xd8\xff") else len(content), 0
    while scans <= MAX_SCANS and (found := _MARKER.search(content, place)):
        if (marker := content[found.end() - 1]) == _END:
            break
        scans += marker == _SCAN
        size = content[found.end() : found.end() + 2]
        place = found.end() + (0 if marker in _BARE else int.from_bytes(size, "big"))
    return scans


def _sizes(content: bytes) -> typing.Iterator[tuple[int, int]]:
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        yield struct.unpack_from(">II", content, 16)
    elif content.startswith(b"\xff\xd8\xff"):
        yield from _of_jpeg(content)
    elif content.startswith(b"GIF8"):
        yield _of_gif(content)
    elif content.startswith(b"BM") and struct.unpack_from("<I", content, 14)[0] in _BITMAP_HEADERS:
        width, height = struct.unpack_from("<ii", content, 18)
        yield abs(width), abs(height)


def _of_jpeg(content: bytes) -> typing.Iterator[tuple[int, int]]:
    place = 2
    while (place := content.find(b"\xff", place)) >= 0:
        while content[place] == 0xFF:
            place += 1
        marker, place = content[place], place + 1
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", content, place + 3)
            yield width, height
            return
        if marker in (_SCAN, _END):
            return
        if marker and marker not in _BARE:
            place += max(2, struct.unpack_from(">H", content, place)[0])


def _of_gif(content: bytes) -> tuple[int, int]:
    """Returns all frames of a GIF as though they stood above each other: a decoder opens them all."""
    width, height, flags = struct.unpack_from("<HHB", content, 6)
    pixels, place = width * height, 13 + _colors(flags)
    with contextlib.suppress(struct.error, IndexError):  # cut off: frames before it are opened all the same
        while content[place] in (0x21, 0x2C):  # an extension, a frame
            if content[place] == 0x2C:
                width, height, flags = struct.unpack_from("<HHB", content, place + 5)
                pixels, place = pixels + width * height, place + 9 + _colors(flags)
            place += 2
            while size := content[place]:
                place += size + 1
            place += 1
    return 1, pixels


def _colors(flags: int) -> int:
    """Returns the bytes of a color table."""
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0

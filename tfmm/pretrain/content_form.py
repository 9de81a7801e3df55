"""What becomes of a content before an encoder's graph sees it; one rule for training, the batch job and the stream."""

from __future__ import annotations

import dataclasses
import unicodedata

from tfmm.pretrain import picture_header
from tfmm.scl_config import SCLConfig

NFKC_CASEFOLD = "nfkc-casefold"
_INVISIBLE = dict.fromkeys((  # but for the joiners U+200C and U+200D, by which words of some languages differ
    0x00AD, 0x034F, 0x061C, 0x180E, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x2070),
    *range(0xFE00, 0xFE10), 0xFEFF, *range(0xE0100, 0xE01F0),
))  # fmt: skip
_INVALID = "\N{REPLACEMENT CHARACTER}"


@dataclasses.dataclass(frozen=True)
class ContentForm:
    """The form of contents that an encoder takes; its manifest keeps it, so that it always gets that one.

    Args:
        text: nfkc-casefold, see `one_spelling`, or "": texts as they are.
        max_pixels: pictures of more are refused, by their header, and so are JPEGs of more than 100 scans.

    Raises:
        ValueError: a form of texts that is not known here.
    """

    text: str = ""
    max_pixels: int = SCLConfig.max_pixels

    def __post_init__(self) -> None:
        if self.text not in ("", NFKC_CASEFOLD):
            raise ValueError(
                f"An encoder's form of texts must be {NFKC_CASEFOLD!r} or ''. Received: {self.text!r}. Upgrade tfmm, "
                "which the encoder was written with."
            )

    def refusal(self, content: bytes | str) -> str | None:
        """Returns why a content is refused, or None."""
        if isinstance(content, bytes) and (pixels := picture_header.num_pixels(content)) > self.max_pixels:
            return f"must have at most {self.max_pixels:,} pixels, not {pixels:,}; make the picture smaller"
        if isinstance(content, bytes) and picture_header.num_scans(content) > picture_header.MAX_SCANS:
            return f"must have at most {picture_header.MAX_SCANS} scans, not more; save the picture anew"
        return None

    def __call__(self, content: bytes | str) -> bytes:
        """Returns a content as the encoder's graph takes it."""
        if self.text:
            return one_spelling(content if isinstance(content, str) else content.decode("utf-8", "replace")).encode()
        return content.encode() if isinstance(content, str) else content


def one_spelling(text: str) -> str:
    """Returns what all spellings of a text have in common: composed, compatible, without case, nothing invisible.

    Characters that no UTF-8 holds, and replacements of such, become spaces.

    >>> one_spelling("Cafe\\u0301") == one_spelling("CAFÉ"), one_spelling("Straße ﬁn Ａ１")
    (True, 'strasse fin a1')
    """
    text = text.encode("utf-8", "replace").decode().translate(_INVISIBLE).replace(_INVALID, " ")
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFD", text).casefold())  # Unicode's D146
    return unicodedata.normalize("NFKC", folded.casefold())

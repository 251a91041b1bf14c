"""How subjects are spelt: tokens with dots between. Pure."""

import re
from typing import Final

NEWS: Final = "nixfleet.news"
"""Below which news is told, where nobody says otherwise."""

_PREFIX: Final = re.compile(r"[A-Za-z0-9_-]{1,64}(\.[A-Za-z0-9_-]{1,64}){0,15}", re.ASCII)
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_-]")


def is_prefix(text: str) -> bool:
    """Tokens without wildcards, with dots between."""
    return _PREFIX.fullmatch(text) is not None


def token(text: str) -> str:
    """A text as one token: what has a meaning in a subject is written `=2E`."""
    return _UNSAFE.sub(lambda found: "".join(f"={byte:02X}" for byte in found[0].encode()), text) or "="

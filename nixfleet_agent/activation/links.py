"""Symbolic links that are replaced without ever being absent."""

import os
from pathlib import Path

from nixfleet_agent.files import sync_directory


def link_atomically(target: str, link: str) -> None:
    """Make `link` point at `target`, in place of whatever link was there, also after a power cut. Raises `OSError`."""
    os.makedirs(os.path.dirname(link), exist_ok=True)
    temporary = f"{link}.new"
    if os.path.lexists(temporary):
        os.unlink(temporary)
    os.symlink(target, temporary)
    os.replace(temporary, link)
    sync_directory(Path(link).parent)

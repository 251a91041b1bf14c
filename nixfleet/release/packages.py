"""Which packages a release changes on each host, as far as both closures are in this machine's store."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from nixfleet.release.changes import Change, ChangeKind
from nixfleet.update.errors import FlakeError
from nixfleet.update.flake import differences

_STORE: Final = "/nix/store"


async def package_changes(changes: Sequence[Change]) -> dict[str, tuple[str, ...]]:
    """By host a line for each package that changes. A host whose old or new closure is not here is left out."""
    store = Path(os.environ.get("NIX_STORE_DIR") or _STORE)
    found: dict[str, tuple[str, ...]] = {}
    for change in changes:
        if change.kind is not ChangeKind.CHANGED or change.old is None or change.new is None:
            continue
        old, new = store / change.old, store / change.new
        if shutil.which("nix") is None or not (old.exists() and new.exists()):
            continue
        try:
            found[change.host] = await differences(str(old), str(new))
        except FlakeError as error:  # a comparison is not worth a release
            found[change.host] = (f"not compared: {error}",)
    return found

"""Sign what was built and copy it to a binary cache, from where hosts take it."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Final

from nixfleet.update.errors import FlakeError
from nixfleet.update.flake import last_words, nix
from state_machine.values import Closure

COPY_S: Final = 6 * 3600.0
_STORE: Final = "/nix/store"


def found_here(closures: Collection[Closure]) -> list[str]:
    """The paths of those that are in this machine's store.

    What is not here was not built here, and is nobody's to copy; whether a cache has it is for `cache_check` to say.
    """
    store = Path(os.environ.get("NIX_STORE_DIR") or _STORE)
    return sorted({str(store / closure) for closure in closures if (store / closure).exists()})


async def fill(here: Collection[str], cache: str, signing_key_file: Path | None) -> None:
    """Sign these paths, at least one, and copy them with all that they need.

    Raises:
        FlakeError: nix would not.
    """
    if signing_key_file is not None:
        await _nix("signing", "store", "sign", "--key-file", str(signing_key_file), "--recursive", *here)
    await _nix(f"copying to {cache}", "copy", "--to", cache, *here)


async def _nix(what: str, *words: str) -> None:
    done = await nix(*words, within_s=COPY_S)
    if not done.ok:
        raise FlakeError(what=what, said=last_words(done))

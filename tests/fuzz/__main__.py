"""Fuzz every parser of what others wrote: `python -m tests.fuzz [--seconds N] [--target NAME ...]`.

What breaks a parser is written below `tests/fuzz/findings/` and replayed by `make test` for ever. Without `--seconds`
it goes on until told to stop.
"""

import contextlib
import importlib
import importlib.util
import os
import sys
from typing import Final

_OURS: Final = ["evidence", "wire", "nixfleet", "nixfleet_agent", "control_plane", "state_machine"]


def import_instrumented() -> None:
    """Import what will be fuzzed under the eye of atheris, where there is one: before anything else imports it."""
    if importlib.util.find_spec("atheris") is None:
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # it names every module
        atheris = importlib.import_module("atheris")
        with atheris.instrument_imports(include=_OURS):
            importlib.import_module("tests.fuzz.targets")


if __name__ == "__main__":
    import_instrumented()
    sys.exit(importlib.import_module("tests.fuzz.rounds").main())

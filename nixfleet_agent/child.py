"""Start this program's own modules in a process of their own, wherever the program itself was loaded from.

A package manager may give a program its modules by a start script that extends `sys.path` and nothing else (nixpkgs
does); the bare interpreter behind `sys.executable` then knows none of them. Every child that is a module of ours is
started with what is said here, and finds exactly what its parent found.
"""

import os
import sys
from collections.abc import Mapping


def module_command(module: str, *arguments: str) -> list[str]:
    """The command line that runs `module` with this interpreter; to be started with `module_environment`."""
    # Without -P the directory that happens to be the current one would come before everything else in the search.
    return [sys.executable, "-P", "-m", module, *arguments]


def module_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """`environ`, or this process's own, with the places where this process finds its modules.

    Only for children that end soon or are programs of ours: it would get in the way of anybody else's Python.
    """
    places = dict.fromkeys(entry or os.getcwd() for entry in sys.path)
    return {**(os.environ if environ is None else environ), "PYTHONPATH": os.pathsep.join(places)}


def same_command() -> list[str]:
    """The command line that starts this program as it was started: through its start script, if it has one."""
    # `sys.argv` would lose what stood before the program: `-m`, or the start script that finds the modules.
    return [sys.executable, *sys.orig_argv[1:]]

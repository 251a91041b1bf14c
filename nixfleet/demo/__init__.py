"""`nixfleet demo`: a control plane and three hosts at work on this machine, every one a process of its own.

Nothing is staged: keys, certificates, releases, switches, crashes and proofs are made by the programs that a fleet
runs, and each claim on the screen is checked before it is printed.
"""

import sys
import tempfile
from pathlib import Path

import click


@click.command()
@click.option("--keep", is_flag=True, help="Leave everything in place afterwards, and say where.")
@click.option("--no-nix", is_flag=True, help="Use the plain directory store even where nix is installed.")
@click.option("--directory", type=click.Path(path_type=Path), help="Work here instead of a temporary directory.")
def demo(keep: bool, no_nix: bool, directory: Path | None) -> None:
    """Show a whole fleet at work on this machine, in about a minute."""
    from nixfleet.demo.play import play
    from nixfleet.demo.stage import DemoFailedError, Stage

    if directory is not None and directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise click.UsageError(f"{directory} is not an empty directory; name a new one")
    place = directory or Path(tempfile.mkdtemp(prefix="nixfleet-demo-"))
    stage = Stage()
    try:
        play(stage, place, use_nix=not no_nix)
    except DemoFailedError as error:
        stage.failed(str(error), place)
        sys.exit(1)
    except KeyboardInterrupt:
        stage.line(f"stopped; logs and state are in {place}")
        sys.exit(130)
    if keep or directory is not None:
        stage.line(f"everything is in {place}")
    else:
        _remove(place)


def _remove(place: Path) -> None:
    """Store paths are read-only, so their directories must be opened before they can be emptied."""
    import os
    import shutil

    for path, directories, _ in os.walk(place):
        for name in directories:
            entry = Path(path, name)
            if not entry.is_symlink():
                entry.chmod(0o700)
    shutil.rmtree(place)

"""`nixfleet demo`: a control plane and three hosts at work on this machine, every one a process of its own.

Nothing is staged: keys, certificates, releases, switches, crashes and proofs are made by the programs that a fleet
runs, and each claim on the screen is checked before it is printed.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import click


@click.command()
@click.option("--keep", is_flag=True, help="Leave everything in place afterwards, and say where.")
@click.option("--no-nix", is_flag=True, help="Use the plain directory store even where nix is installed.")
@click.option("--loop", is_flag=True, help="The way from flake.lock to the fleet instead; needs nix and git.")
@click.option("--directory", type=click.Path(path_type=Path), help="Work here instead of a temporary directory.")
def demo(keep: bool, no_nix: bool, loop: bool, directory: Path | None) -> None:
    """Show a whole fleet at work on this machine, in about a minute."""
    from nixfleet.demo.foundry import have_nix
    from nixfleet.demo.loop import play_loop
    from nixfleet.demo.play import play
    from nixfleet.demo.stage import DemoFailedError, Stage

    if directory is not None and directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise click.UsageError(f"{directory} is not an empty directory; name a new one")
    if loop and (no_nix or not have_nix() or shutil.which("git") is None):
        raise click.UsageError("--loop builds with nix what git has: both must be on PATH, and --no-nix not given")
    place = directory or Path(tempfile.mkdtemp(prefix="nixfleet-demo-"))
    stage = Stage()
    try:
        if loop:
            play_loop(stage, place)
        else:
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

    for path, directories, _ in os.walk(place):
        for name in directories:
            entry = Path(path, name)
            if not entry.is_symlink():
                entry.chmod(0o700)
    shutil.rmtree(place)

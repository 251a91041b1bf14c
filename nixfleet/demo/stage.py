"""What the audience sees: acts, claims that were checked, and what the hosts do meanwhile."""

import os
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape


class DemoFailedError(Exception):
    """A claim did not hold."""


class Stage:
    """Prints to standard output: in colour on a terminal, plain in a pipe."""

    def __init__(self) -> None:
        self._console = Console(
            highlight=False, soft_wrap=True, no_color="NO_COLOR" in os.environ or not sys.stdout.isatty()
        )
        self._began = time.monotonic()
        self._act = 0
        self.claims = 0

    def title(self, text: str) -> None:
        """The first line."""
        self._console.print(f"[bold]{escape(text)}[/bold]")

    def act(self, text: str) -> None:
        """A new act."""
        self._act += 1
        self._console.print(f"\n[bold cyan]{self._act}. {escape(text)}[/bold cyan]")

    def line(self, text: str) -> None:
        """Something to know."""
        self._console.print(f"   {escape(text)}")

    def command(self, words: str) -> None:
        """What a person would have typed."""
        self._console.print(f"   [dim]$ {escape(words)}[/dim]")

    def saw(self, host: str, what: str, colour: str = "yellow") -> None:
        """A host did something just now."""
        elapsed = time.monotonic() - self._began
        self._console.print(f"   {elapsed:5.1f} s  {escape(host):<6} [{colour}]{escape(what)}[/{colour}]")

    def claim(self, holds: bool, text: str, otherwise: str = "") -> None:
        """Say `text` if it holds.

        Raises:
            DemoFailedError: it does not.
        """
        if not holds:
            raise DemoFailedError(f"not true: {text}" + (f"\n{otherwise}" if otherwise else ""))
        self.claims += 1
        self._console.print(f"   [green]✓[/green] {escape(text)}")

    def failed(self, text: str, place: Path) -> None:
        """The demo ends here."""
        self._console.print(f"   [red]✗ {escape(text)}[/red]\n   logs and state are in {place}")

    def end(self) -> None:
        """The last line."""
        elapsed = time.monotonic() - self._began
        self._console.print(f"\n[bold green]{self.claims} claims, all checked, in {elapsed:.0f} s[/bold green]")

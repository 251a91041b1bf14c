"""`nixfleet canonicalize`: the bytes that are hashed and signed, for anyone who wants to check by hand."""

import sys
from pathlib import Path

import click

from evidence.canonical import ARTIFACT_LIMIT, CanonicalError, parse
from evidence.canonical import canonicalize as canonical_bytes
from evidence.regular_files import read_start
from nixfleet.files import read_bytes


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True), default="-")
@click.pass_context
def canonicalize(ctx: click.Context, file: Path) -> None:
    """Write the canonical JSON (RFC 8785) of FILE, or of standard input, without a newline at the end.

    What must not be signed is refused: duplicate members, numbers that readers round, lone surrogates, nesting beyond
    64, more than 8 MiB. Exit status 1 then, and the reason first on standard error.
    """
    try:
        content = canonical_bytes(parse(_content(file)))
    except CanonicalError as error:
        click.echo(f"{error.reason}: {error.detail}", err=True)
        ctx.exit(1)
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


def _content(file: Path) -> bytes:
    if str(file) == "-":
        return sys.stdin.buffer.read(ARTIFACT_LIMIT + 1)
    # A pipe is read as long as somebody writes to it: `nixfleet canonicalize <(curl ...)`.
    return read_bytes(file, "document") if file.is_fifo() else read_start(file, ARTIFACT_LIMIT)

"""Manual pages from the programs' own commands and options, and from `manual_text`.

One page a program, its sub-commands within: at a host without a network a person has one name to remember. Written in
man(7), which every `man` shows. The libraries that make pages from click write one page a command, no FILES, EXIT
STATUS or EXAMPLES, and text that begins with a dot unescaped, so this is our own.
"""

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import attrs
import click
from manual_text import AGENT, CONTROL_PLANE, EDITED, OPERATOR, Manual, Pair

from nixfleet_agent import __version__

FOLDER: Final = Path(__file__).with_name("man")
MANUALS: Final = (AGENT, CONTROL_PLANE, OPERATOR)
WIDTH: Final = 78

_CODE: Final = re.compile(r"`([^`\n]+)`")


@attrs.frozen(kw_only=True)
class Tree:
    """A program's commands, and how the page of options reads one: these come from `generate`."""

    contexts: Sequence[click.Context]
    """The program itself first, then every command below it."""
    environment: Callable[[click.Option, click.Context], str]
    default: Callable[[click.Option, click.Context], str]
    meaning: Callable[[click.Option], str]


def path_of(manual: Manual) -> Path:
    """Where the page is checked in."""
    return FOLDER / f"{manual.program}.{manual.section}"


def page(manual: Manual, tree: Tree) -> str:
    """The whole page in man(7)."""
    lines = [
        r".\" Written by docs/generate.py from the program itself; edit the options there and docs/manual_text.py.",
        f'.TH {manual.program.upper()} {manual.section} "{EDITED}" "nixfleet {__version__}" "nixfleet manual"',
        # What people copy, such as a path, is not to be broken by a hyphen.
        ".nh",
        ".ad l",
        ".SH NAME",
        f"{_plain(manual.program)} \\- {_plain(manual.purpose)}",
        ".SH SYNOPSIS",
        *_synopsis(tree),
        ".SH DESCRIPTION",
        *_paragraphs(manual.description),
        ".SH OPTIONS",
        *_options(tree, tree.contexts[0]),
        ".SH COMMANDS",
        *_commands(tree),
        ".SH ENVIRONMENT",
        *_environment(manual, tree),
        ".SH FILES",
        *_pairs(manual.files),
        ".SH EXIT STATUS",
        *_pairs(manual.exits),
        *([".SH SIGNALS", *_pairs(manual.signals)] if manual.signals else []),
        ".SH EXAMPLES",
        *_paragraphs(manual.examples),
        ".SH SEE ALSO",
        *_references(manual.see_also),
    ]
    return "\n".join(lines) + "\n"


def _synopsis(tree: Tree) -> Iterator[str]:
    root = tree.contexts[0]
    words = [r"[\fIOPTIONS\fR]"]
    if isinstance(root.command, click.Group):
        words.append(r"[\fICOMMAND\fR ...]" if root.command.invoke_without_command else r"\fICOMMAND\fR [...]")
    yield f".B {_plain(root.command_path)}"
    yield " ".join(words)


def _commands(tree: Tree) -> Iterator[str]:
    for context in tree.contexts[1:]:
        command = context.command
        if isinstance(command, click.Group) and not list(_shown(command)):
            continue  # what its own commands say is enough
        pieces = [word for word in command.collect_usage_pieces(context) if word != "[OPTIONS]"]
        name = context.command_path.partition(" ")[2]
        yield f".SS {_plain(' '.join([name, *pieces]))}"
        yield from _paragraphs(inspect.cleandoc(command.help or "").split("\n\n"), first="")
        yield from _options(tree, context)


def _shown(command: click.Command) -> Iterator[click.Option]:
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden and option.name not in ("help", "version"):
            yield option


def _options(tree: Tree, context: click.Context) -> Iterator[str]:
    for option in _shown(context.command):
        yield ".TP"
        yield _term(option, context)
        text, _, aside = _strip(tree.meaning(option)).partition(" [default: ")
        default = _strip(tree.default(option, context)) or aside.rstrip(".]")
        yield from _text(text.strip().rstrip(".") + "." + (f" Default: {default}." if default else ""))


def _term(option: click.Option, context: click.Context) -> str:
    flags = ", ".join(rf"\fB{_plain(flag)}\fR" for flag in (*sorted(option.opts, key=len), *option.secondary_opts))
    if option.is_flag:
        return flags
    choices = getattr(option.type, "choices", None)
    value = "|".join(choices) if choices else option.make_metavar(context).replace(" RANGE", "")
    return rf"{flags} \fI{_plain(value)}\fR"


def _environment(manual: Manual, tree: Tree) -> Iterator[str]:
    yield from _text("A flag beats its variables, and the first of them that is set beats the others.")
    for context in tree.contexts:
        for option in _shown(context.command):
            names = _strip(tree.environment(option, context))
            if names:
                flag = max(option.opts, key=len)
                where = "" if context.parent is None else f" of `{context.command_path.partition(' ')[2]}`"
                yield from _pairs([(names, f"`{flag}`{where}.")])
    yield from _pairs(manual.environment)


def _pairs(pairs: Sequence[Pair]) -> Iterator[str]:
    for term, meaning in pairs:
        yield ".TP"
        yield rf"\fB{_plain(term)}\fR"
        yield from _text(meaning)


def _paragraphs(paragraphs: Sequence[str], first: str = "") -> Iterator[str]:
    """Running text; what is indented by four stands as it is."""
    for number, paragraph in enumerate(paragraphs):
        if paragraph.startswith("    "):
            yield from (".PP", ".RS 4", ".nf")
            yield from (_guarded(_plain(line[4:])) for line in paragraph.splitlines())
            yield from (".fi", ".RE")
            continue
        yield from [".PP"] if number else [first] if first else []
        yield from _text(paragraph)


def _references(names: Sequence[str]) -> Iterator[str]:
    for index, name in enumerate(names):
        title, _, section = name.rstrip(")").partition("(")
        yield f".BR {_plain(title)} ({section}){',' if index < len(names) - 1 else ''}"


def _text(text: str) -> Iterator[str]:
    """A sentence on lines of its own, as man(7) wants it, with code in bold."""
    for sentence in re.split(r"(?<=[.;:]) (?=\S)", " ".join(text.split())):
        marked = _CODE.sub(lambda found: f"\0{found[1]}\1", sentence)
        said = _plain(marked).replace("\0", r"\fB").replace("\1", r"\fR")
        yield from map(_guarded, textwrap.wrap(said, WIDTH, break_long_words=False, break_on_hyphens=False))


def _guarded(line: str) -> str:
    """A line of text, which must not begin like a request."""
    return rf"\&{line}" if line.startswith((".", "'")) else line


def _plain(text: str) -> str:
    """Text as it is: a backslash and a dash that people copy."""
    special = {"●": r"\(bu", "\N{MULTIPLICATION SIGN}": r"\(mu", "○": r"\(ci", "…": "..."}
    escaped = text.replace("\\", r"\e").replace("-", r"\-").replace("`", r"\(ga").replace("~", r"\(ti")
    return "".join(special.get(letter, letter) for letter in escaped)


def _strip(text: str) -> str:
    """A cell of the reference without the marks of Markdown."""
    return text.replace("`", "")

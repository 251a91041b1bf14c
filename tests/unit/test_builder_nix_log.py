"""What Nix says in JSON, read: counts, lines and errors, from any stream of bytes."""

import itertools
import json
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixfleet.builder.nix_log import LINE_MAX, PART_MAX, TAIL_LINES, NixLog, plain

DRV: Final = "/nix/store/yjkh67d6ykbc4sn9kign4lwawvw845x0-nixos-system-web1-25.11.drv"


def say(action: str, **members: Any) -> bytes:
    return b"@nix " + json.dumps({"action": action, **members}).encode() + b"\n"


def told(*pieces: bytes) -> tuple[NixLog, list[str]]:
    log = NixLog()
    return log, [line for piece in pieces for line in log.feed(piece)] + log.end()


BUILDS: Final = say("start", id=1, level=0, text="", type=104)
BUILD: Final = say("start", id=2, level=3, text=f"building '{DRV}'", type=105, fields=[DRV, "", 1, 1])
LINE: Final = say("result", id=2, type=101, fields=["\x1b[31mcompiling\x1b[0m\n"])
ERROR: Final = say(
    "msg", level=0, msg=f"\x1b[31;1merror:\x1b[0m builder for '{DRV}' failed with exit code 1", raw_msg=""
)


def test_derivations_are_counted_over_every_run_of_builds() -> None:
    log, _ = told(
        BUILDS, say("result", id=1, type=105, fields=[0, 3, 1, 0]), say("result", id=1, type=105, fields=[3, 3, 0, 0]),
        say("stop", id=1), say("start", id=9, level=0, text="", type=104),
        say("result", id=9, type=105, fields=[1, 4, 1, 0]),
    )  # fmt: skip
    assert (log.done, log.expected) == (4, 7)


def test_progress_of_copies_and_downloads_counts_no_derivations() -> None:
    log, _ = told(
        say("start", id=3, level=0, text="", type=103), say("result", id=3, type=105, fields=[5, 9, 0, 0]),
        say("result", id=3, type=106, fields=[101, 7]),
    )  # fmt: skip
    assert (log.done, log.expected) == (0, 0)


def test_a_build_s_line_is_told_with_what_is_built() -> None:
    log, text = told(BUILDS, BUILD, LINE)
    assert log.line == "nixos-system-web1-25.11> compiling"
    assert text == [f"building '{DRV}'", "nixos-system-web1-25.11> compiling"]


def test_a_line_of_a_build_that_nothing_is_known_of_is_told_as_it_is() -> None:
    assert told(LINE)[0].line == "compiling"
    assert told(BUILD, say("stop", id=2), LINE)[0].line == "compiling"


def test_an_error_is_plain_and_its_reason_is_its_last_cause() -> None:
    log, text = told(ERROR)
    assert list(log.errors) == text == [f"error: builder for '{DRV}' failed with exit code 1"]
    assert log.reason == f"builder for '{DRV}' failed with exit code 1"
    quoted = f"error: builder for '{DRV}' failed with exit code 2;\n  last 1 log lines:\n  > x.c:3: error: no such y"
    assert told(say("msg", level=0, msg=quoted))[0].reason == f"builder for '{DRV}' failed with exit code 2;"
    nested = "error:\n       … while evaluating x\n\n       error: attribute 'y' missing\n       at /flake.nix:3:4"
    assert told(say("msg", level=0, msg=nested))[0].reason == "attribute 'y' missing"


def test_the_first_error_is_the_reason_and_not_what_came_of_it() -> None:
    later = say("msg", level=0, msg="error: 1 dependencies of derivation 'x.drv' failed to build")
    ignored = say("msg", level=0, msg="error (ignored): a cache does not answer")
    assert told(ignored, ERROR, later)[0].reason == f"builder for '{DRV}' failed with exit code 1"
    assert told(say("msg", level=0, msg="interrupted by the user"))[0].reason == "interrupted by the user"


def test_the_hint_after_an_error_does_not_take_its_place() -> None:
    log, _ = told(say("msg", level=0, msg="error: bad"), say("msg", level=0, msg="(use '--show-trace' to show more)"))
    assert log.reason == "bad"


def test_chatter_is_left_out_and_what_git_says_is_not() -> None:
    _, text = told(
        say("msg", level=4, msg="evaluating file 'x'"), b"fatal: no such ref\r\n", say("msg", level=1, msg="w")
    )
    assert text == ["fatal: no such ref", "w"]


def test_what_was_written_over_on_its_line_is_gone() -> None:
    assert told(b"10%\r50%\r100%\n")[1] == ["100%"]


def test_colours_controls_and_halves_of_characters_are_taken_out() -> None:
    assert plain("\x1b[1;31ma\x1b[0m\x07b\x1b]0;title\x07c\ud800\x9b") == "abc?"
    assert told(b'@nix {"action":"msg","level":0,"msg":"\\ud800x"}\n')[1] == ["?x"]


def test_the_last_line_needs_no_end() -> None:
    assert told(b"fatal: cut")[1] == ["fatal: cut"]


def test_a_line_without_end_is_not_waited_for_for_ever() -> None:
    log = NixLog()
    assert log.feed(b"x" * PART_MAX) == []
    assert log.feed(b"x") == ["x" * LINE_MAX]


def test_the_tail_has_whole_lines_and_is_no_longer_than_asked() -> None:
    log, _ = told(*(f"line {number}\n".encode() for number in range(2 * TAIL_LINES)))
    assert log.tail(10**6).splitlines()[0] == f"line {TAIL_LINES}"
    assert log.tail(20) == f"line {2 * TAIL_LINES - 2}\nline {2 * TAIL_LINES - 1}"
    assert log.tail(3) == ""


@pytest.mark.parametrize(
    "hostile",
    [
        b"@nix", b"@nix ", b"@nix {", b"@nix []", b"@nix null", b"@nix {}", b'@nix {"action":[]}',
        b"@nix " + b"[" * 100_000, b"@nix " + b"9" * 10_000, b'@nix {"action":"result","id":[],"type":105}',
        b'@nix {"action":"result","id":1,"type":105,"fields":[-1,1e400]}',
        b'@nix {"action":"result","id":1,"type":105,"fields":[true,99999999999999999999]}',
        b'@nix {"action":"result","id":1,"type":105,"fields":[NaN,Infinity]}',
        b'@nix {"action":"result","id":1,"type":[],"fields":{}}', b'@nix {"action":"stop","id":{}}',
        b'@nix {"action":"start","id":1,"type":105,"fields":[7],"level":"x","text":3}',
        b'@nix {"action":"msg","level":null,"msg":"x"}', b'@nix {"action":"msg","level":0,"msg":[]}', b"\xff\xfe\x00",
    ],
)  # fmt: skip
def test_garbage_changes_no_count_and_stops_nothing(hostile: bytes) -> None:
    progress = say("result", id=1, type=105, fields=[1, 2, 0, 0])
    log, text = told(BUILDS, progress, BUILD, hostile + b"\n", LINE)
    assert (log.done, log.expected, text[-1]) == (1, 2, log.line)
    assert log.line.endswith("compiling")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
messages = st.fixed_dictionaries(
    {"action": st.sampled_from(["msg", "start", "result", "stop"]) | anything},
    optional={
        "id": st.integers(0, 3) | anything,
        "level": st.integers(0, 7) | anything,
        "type": st.integers(100, 112) | anything,
        "fields": st.lists(st.integers() | st.text() | anything, max_size=4) | anything,
        "text": st.text() | anything,
        "msg": st.text() | anything,
    },
).map(lambda message: b"@nix " + json.dumps(message).encode() + b"\n")
streams = st.lists(st.binary(max_size=60) | messages | st.sampled_from([BUILDS, BUILD, LINE, ERROR]), max_size=12)


@given(streams)
def test_any_stream_is_read_and_all_of_it_can_be_written_and_sent(pieces: list[bytes]) -> None:
    log, text = told(*pieces)
    for line in (*text, log.line, log.reason, *log.errors, log.tail(500)):
        line.encode()
        assert "\x1b" not in line
    assert all(line and "\n" not in line and len(line) <= LINE_MAX + 400 for line in text)
    assert min(log.done, log.expected) >= 0
    assert len(log.tail(500)) <= 500


@given(streams, st.lists(st.integers(0, 400), max_size=8))
def test_how_the_stream_is_cut_into_pieces_makes_no_difference(pieces: list[bytes], cuts: list[int]) -> None:
    whole = b"".join(pieces)
    places = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    cut, text = told(*(whole[start:end] for start, end in itertools.pairwise(places)))
    at_once, same = told(whole)
    assert text == same
    assert (cut.done, cut.expected, cut.line, cut.reason) == (
        at_once.done, at_once.expected, at_once.line, at_once.reason,
    )  # fmt: skip

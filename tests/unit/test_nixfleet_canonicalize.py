"""`nixfleet canonicalize`: exact bytes out, or one reason."""

import subprocess
import sys
from pathlib import Path

import pytest

from nixfleet.__main__ import run

RFC_8785_SECTION_3_2_2 = (
    b'{"numbers":[333333333.33333329,1E30,4.50,2e-3,0.000000000000000000000000001],'
    b'"string":"\\u20ac$\\u000F\\u000aA\'\\u0042\\u0022\\u005c\\\\\\"\\/","literals":[null,true,false]}'
)
RFC_8785_SECTION_3_2_3 = (
    '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
    '"string":"\u20ac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
).encode()


def test_the_example_of_the_standard(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    (tmp_path / "a.json").write_bytes(RFC_8785_SECTION_3_2_2)
    assert run(["canonicalize", str(tmp_path / "a.json")]) == 0
    assert capfdbinary.readouterr() == (RFC_8785_SECTION_3_2_3, b"")


def test_standard_input_is_read_without_a_file_and_no_newline_is_added() -> None:
    for arguments in ([], ["-"]):
        done = subprocess.run(
            [sys.executable, "-m", "nixfleet", "canonicalize", *arguments],
            input=b' { "b" : 1.0 , "a" : "\xc3\xa9" } \n',
            capture_output=True,
            check=True,
        )
        assert done.stdout == b'{"a":"\xc3\xa9","b":1}'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a":1,"a":2}', b"parse: an object has two members named 'a'\n"),
        (b"[1e400]", b"parse: the number 1e400 cannot be held exactly"),
        (b"[9007199254740992]", b"parse: the number 9007199254740992 cannot"),
        (b'["\\ud800"]', b"parse: a string contains a lone surrogate"),
        (b"[" * 65 + b"]" * 65, b"parse: arrays and objects are nested more than 64 deep\n"),
        (b"", b"parse: not a JSON document"),
        (b" " * (8 * 1024 * 1024 + 1), b"too-large: "),
    ],
    ids=["duplicate", "1e400", "2^53", "surrogate", "deep", "empty", "large"],
)
def test_what_must_not_be_signed_is_refused_with_its_reason_first(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], content: bytes, said: bytes
) -> None:
    (tmp_path / "a.json").write_bytes(content)
    assert run(["canonicalize", str(tmp_path / "a.json")]) == 1
    out, err = capfdbinary.readouterr()
    assert (out, err[: len(said)]) == (b"", said)


def test_a_file_that_is_not_there_is_a_usage_error(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["canonicalize", "/nowhere"]) == 2
    assert capfd.readouterr().err.startswith("nixfleet: Invalid value for '[FILE]'")


def test_it_starts_without_the_libraries_of_other_commands() -> None:
    heavy = ("httpx", "cryptography", "rich", "trio", "sqlite3", "asyncio", "cattrs")
    code = (
        "import sys\n"
        "from nixfleet.__main__ import run\n"
        "run(['canonicalize'])\n"
        f"print(sorted(set({heavy}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], input=b"[]", capture_output=True, check=True)
    assert done.stdout == b"[][]\n"

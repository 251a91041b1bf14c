"""The control plane is not trusted: no answer of it keeps a program waiting, fills it, or steers a terminal."""

import gzip
import itertools
from collections.abc import Iterator

import click
import httpx
import pytest
from click.testing import CliRunner

from nixfleet.operator_api import OperatorApi
from nixfleet.operator_errors import StrangeAnswerError, UnreachableError
from nixfleet.terminal import harmless, note


def client(answer: httpx.Response) -> httpx.Client:
    return httpx.Client(transport=httpx.MockTransport(lambda _: answer), base_url="https://cp.example.org")


class Drip(httpx.SyncByteStream):
    """An answer without an end."""

    def __iter__(self) -> Iterator[bytes]:
        return itertools.repeat(b" ")


def test_an_answer_that_never_comes_to_its_end_is_given_up() -> None:
    clock = itertools.count()
    with client(httpx.Response(200, stream=Drip())) as opened:
        api = OperatorApi(opened, "https://cp.example.org", clock=clock.__next__)
        with pytest.raises(UnreachableError, match="no answer within 30 s"):
            api.quarantine()


def test_an_answer_that_was_packed_unasked_is_not_unpacked() -> None:
    packed = gzip.compress(b'{"quarantine": []}')
    answer = httpx.Response(200, headers={"Content-Encoding": "gzip"}, stream=httpx.ByteStream(packed))
    with client(answer) as opened, pytest.raises(StrangeAnswerError):
        OperatorApi(opened, "https://cp.example.org").quarantine()


def test_what_others_said_does_not_steer_the_terminal() -> None:
    @click.command()
    def say() -> None:
        note("a\x1b]0;title\x07b\x9bc\n  d")

    assert CliRunner().invoke(say).output.endswith("a\ufffd]0;title\ufffdb\ufffdc\n  d\n")
    assert harmless("plain: é\n\tx") == "plain: é\n\tx"

"""Of what ends a connection one trouble is told, though several tasks meet it; a defect stays one."""

import pytest

from messaging.errors import LostError, NoAnswerError
from nixfleet.builder.service import link_error_of

LOST = LostError(url="nats://x")
SILENT = NoAnswerError(subject="build.jobs.>", within_s=10)


def test_of_several_troubles_of_the_connection_the_first_is_told() -> None:
    assert link_error_of(ExceptionGroup("", [ExceptionGroup("", [LOST]), SILENT])) is LOST


def test_a_defect_beside_a_trouble_of_the_connection_is_not_lost() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        link_error_of(ExceptionGroup("", [LOST, ExceptionGroup("", [ValueError("a defect")])]))
    assert caught.group_contains(ValueError, match="a defect")

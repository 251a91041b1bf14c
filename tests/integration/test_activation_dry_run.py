"""A dry run shows what a switch would do and changes nothing."""

from pathlib import Path

import pytest

from nixfleet_agent.activation.interface import Platform
from nixfleet_agent.activation.platforms import platform_for
from state_machine.system import SwitchOutcome
from state_machine.values import Closure, SwitchMethod
from tests.nixlab import DirectoryPublisher, Host


@pytest.fixture(scope="module")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> DirectoryPublisher:
    return DirectoryPublisher.at(tmp_path_factory.mktemp("publisher"))


@pytest.fixture
def host(publisher: DirectoryPublisher, tmp_path: Path) -> Host:
    return publisher.host(tmp_path)


@pytest.fixture
def rehearsal(host: Host) -> Platform:
    return platform_for(SwitchMethod.DRY_RUN, paths=host.paths, store=host.store)


async def test_the_system_says_what_it_would_do_and_stays_untouched(
    host: Host, publisher: DirectoryPublisher, rehearsal: Platform
) -> None:
    old, new = publisher.publish("good"), publisher.publish("good")
    await host.starts_on(old)
    assert (await rehearsal.realise(new, caches=[host.cache])).ok
    before = rehearsal.observe()
    report = await rehearsal.switch("op-1", new, started=lambda: pytest.fail("nothing begins"))
    assert (report.outcome, report.method, report.exit_code) == (SwitchOutcome.FAILED, SwitchMethod.DRY_RUN, 0)
    assert report.observed == old
    assert "would restart example.service" in report.detail
    assert rehearsal.observe() == before
    assert host.runs() == [f"dry-activate {new}"]
    assert not Path(host.paths.work).exists()


async def test_a_rehearsal_of_nothing_says_why(host: Host, rehearsal: Platform) -> None:
    for name, why in (("../x", "not the name"), ("0" * 32 + "-absent", "is absent")):
        report = await rehearsal.rollback("op-1", Closure(name))
        assert report.outcome is SwitchOutcome.FAILED
        assert why in report.detail


async def test_a_rehearsal_that_hangs_is_killed(host: Host, publisher: DirectoryPublisher, rehearsal: Platform) -> None:
    hanging = "#!/bin/sh\nsleep 600\n"
    closure = publisher.publish("good", files={"bin/switch-to-configuration": hanging})
    assert (await rehearsal.realise(closure, caches=[host.cache])).ok
    report = await rehearsal.switch("op-1", closure, timeout_s=0.2)
    assert report.exit_code is None
    assert "deadline" in report.detail

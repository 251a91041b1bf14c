"""Hypothesis profiles for every test. `HYPOTHESIS_PROFILE=deep` looks a hundred times further than `make test` does.

Under CI examples are derived from the test itself, so that a red run can be repeated; elsewhere each run looks at
something new, and a failure is kept in the local database.
"""

import os
import signal
from collections.abc import Generator

import httpcore
import pytest
from hypothesis import HealthCheck, settings

assert httpcore  # before the daemon, which has no use for AnyIO and would keep httpcore and all after it from it

# Started in the background, or with nohup, the tests and all they start would be deaf to these.
for _number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number is signal.SIGINT else signal.SIG_DFL)

pytest.register_assert_rewrite("tests.unit.step_story", "tests.property.agent_world")

_COMMON = settings(
    deadline=None,
    print_blob=True,
    derandomize=bool(os.environ.get("CI")),
    # One example is a whole run of an agent, and the machine may be busy with other things.
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("default", parent=_COMMON, max_examples=200)
settings.register_profile("deep", parent=_COMMON, max_examples=20_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spread the tests with whole hosts evenly over the run: they wait a lot, and workers get neighbouring tests."""
    hosts = [item for item in items if "/tests/system/" in str(item.path)]
    others = [item for item in items if "/tests/system/" not in str(item.path)]
    if hosts and others:
        ranks = [(n / len(hosts), item) for n, item in enumerate(hosts)]
        ranks += [(n / len(others), item) for n, item in enumerate(others)]
        items[:] = [item for _, item in sorted(ranks, key=lambda ranked: ranked[0])]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under CI nothing may be skipped: whatever a test lacks there is a mistake in `.ci/run`."""
    report = yield
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped under CI, where nothing may be: {report.longrepr}"
    return report

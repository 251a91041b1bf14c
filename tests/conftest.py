"""Hypothesis profiles for every test. `HYPOTHESIS_PROFILE=deep` looks a hundred times further than `make test` does.

Under CI examples are derived from the test itself, so that a red run can be repeated; elsewhere each run looks at
something new, and a failure is kept in the local database.
"""

import os

import pytest
from hypothesis import HealthCheck, settings

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

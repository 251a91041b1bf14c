"""What the resident process has loaded, listed: every module is memory on every host for as long as it is up.

The agent runs as it is; a `sitecustomize` that only the test puts on its path writes the names of its modules to a
file when it ends.
"""

import json
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.agentlab import AgentFleet

RECORDER: Final = """\
import atexit, json, os, sys

def record():
    with open(os.environ["MODULES_FILE"], "w") as file:
        json.dump(sorted(name for name, module in sys.modules.items() if module), file)

atexit.register(record)
"""

OURS: Final = {"state_machine", "wire", "evidence", "nixfleet_agent"}

THIRD_PARTY: Final = {
    "attr", "attrs", "cattrs", "typing_extensions",  # values and their JSON
    "trio", "outcome", "sniffio", "sortedcontainers", "idna",  # the loop
    "httpx", "httpcore", "h11", "certifi",  # HTTP
    "nacl", "_cffi_backend", "jcs",  # evidence
}  # fmt: skip

NOT_RESIDENT: Final = {
    "wire.listings": "only operators read listings",
    "evidence.compliance": "only where an evidence probe is declared",
    "nixfleet_agent.cli": "command-line help is for people",
    "nixfleet_agent.metrics": "only with --metrics-port",
    "nixfleet_agent.inspection": "a tool for the person at the host",
    "nixfleet_agent.preflight": "a tool for the person at the host",
    "nixfleet_agent.certificates": "X.509 is done in a process that ends",
    "nixfleet_agent.activation.darwin": "not on Linux",
    "nixfleet_agent.narration": "words are for people",
    "nixfleet_agent.sources.legacy": "a host follows one source",
    "nixfleet_agent.sources.gradient": "a host follows one source",
    "zoneinfo": "only where there are windows",
    "asyncio": "only with --nats-url",
    "messaging": "only with --nats-url",
    "nats": "only with --nats-url",
    "nixfleet_agent.workers.news": "only with --nats-url",
    "trio_asyncio": "only with --nats-url",
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The modules of an agent that enrolled, took a rollout, probed it, and idled."""
    root = tmp_path_factory.mktemp("modules")
    recorder, found = root / "recorder", root / "modules.json"
    recorder.mkdir()
    (recorder / "sitecustomize.py").write_text(RECORDER)
    fleet = AgentFleet(root / "fleet", hosts=("web1",))
    with fleet.start() as cp:
        agent = fleet.agent("web1", cp.url, running=fleet.system())
        with agent.running(PYTHONPATH=str(recorder), MODULES_FILE=str(found)):
            rollout = fleet.release(cp, {"web1": fleet.system()})
            agent.until_settled(rollout, "Converged")
            agent.stop()
    return set(json.loads(Path(found).read_text()))


def test_nothing_of_other_people_but_what_the_agent_runs_on(loaded: set[str]) -> None:
    names = {name.partition(".")[0] for name in loaded}
    foreign = names - set(sys.stdlib_module_names) - OURS - {"__main__", "__mp_main__", "sitecustomize"}
    assert foreign <= THIRD_PARTY | {name for name in foreign if name.startswith(("__editable__", "_"))}


@pytest.mark.parametrize("name", sorted(NOT_RESIDENT))
def test_what_is_not_needed_all_the_time_is_not_loaded(loaded: set[str], name: str) -> None:
    assert name not in loaded, NOT_RESIDENT[name]

"""A builder's runs in scopes of a real systemd: what they may take, and that nothing of them is left."""

import json
import sys
from pathlib import Path
from typing import Any, Final

import trio

from tests.system.host import CHECKOUT, Host
from tests.system.network import network

_SCRIPT: Final = """
import json, os, subprocess, sys
import trio
from nixfleet.builder.limits import Limits

def seen(word):
    listed = subprocess.run(["systemctl", "list-units", "--no-legend", "nixfleet-build-*"], capture_output=True)
    return {"units": listed.stdout.decode().split(), "pids": subprocess.getoutput(f"pgrep -x {word}").split()}

async def main(word):
    limits = Limits.here(runtime_s=540, memory_max="64M")
    env, heard = {**os.environ, "WORD": word}, []
    async def run(script):
        return await limits.run(["sh", "-c", script], env=env, cwd="/tmp", heard=heard.append)
    match word:
        case "status":
            own = "$(sed -n 's,^0::.*/,,p' /proc/self/cgroup)"
            show = f"systemctl show --property=MemoryMax,RuntimeMaxUSec,BindsTo {own}"
            done = await run(f"pwd; echo $WORD; {show}; echo aside >&2; exit 7")
            print(json.dumps([done.exit_code, done.stdout.decode().split(), b"".join(heard).decode()]))
        case "left":
            await run("cp /bin/sleep /tmp/left; setsid /tmp/left 600 & while ! pgrep -x left; do :; done")
            print(json.dumps(seen("left")))
        case "cancelled":
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    deaf = "trap : TERM; while :; do /tmp/deaf 600; done"
                    nursery.start_soon(run, f"cp /bin/sleep /tmp/deaf; setsid sh -c '{deaf}' & /tmp/deaf 600")
                    while not seen("deaf")["pids"]:
                        await trio.sleep(0.05)
                    scope.cancel()
            print(json.dumps(seen("deaf")))
        case "killed":
            await run("cp -n /bin/sleep /tmp/orphan; setsid /tmp/orphan 600 & /tmp/orphan 600")

trio.run(main, sys.argv[1])
"""


async def said(host: Host, word: str) -> Any:
    """What the script has to say as a service of the host's."""
    words = ("systemd-run", "--pipe", "--wait", "--quiet", "--collect", f"--unit=builder-{word}")
    return json.loads(await host.run(*words, f"--working-directory={CHECKOUT}", sys.executable, "/script.py", word))


async def orphans(host: Host) -> set[str]:
    return set((await host.attempt("pgrep", "-x", "orphan")).split())


async def test_a_run_in_a_scope_is_limited_and_leaves_nothing(place: Path) -> None:
    place.mkdir()
    with network() as switch:
        host = Host(name="builder", directory=place / "host", switch=switch)
        host.put("/script.py", f"import sys\nsys.path.insert(0, {str(CHECKOUT)!r})\n{_SCRIPT}")
        await host.boot()
        try:
            status, words, aside = await said(host, "status")
            assert (status, words[:2], aside) == (7, ["/tmp", "status"], "aside\n")
            assert {"MemoryMax=67108864", "RuntimeMaxUSec=10min", "BindsTo=builder-status.service"} <= set(words)
            assert await said(host, "left") == {"units": [], "pids": []}
            assert await said(host, "cancelled") == {"units": [], "pids": []}
            await a_builder_that_is_killed_takes_its_build_with_it(host)
        finally:
            host.destroy()


async def a_builder_that_is_killed_takes_its_build_with_it(host: Host) -> None:
    restart = ("--property=Restart=always", "--property=RestartSec=1", f"--working-directory={CHECKOUT}")
    await host.run("systemd-run", "--unit=builder", *restart, sys.executable, "/script.py", "killed")
    with trio.fail_after(60):
        while len(before := await orphans(host)) < 2:
            await trio.sleep(0.1)
        await host.systemctl("kill", "--signal=KILL", "builder")
        while before & (after := await orphans(host)) or len(after) < 2:
            await trio.sleep(0.1)
    assert (await host.systemctl("list-units", "--no-legend", "nixfleet-build-*")).count(".scope") == 1
    await host.systemctl("stop", "builder")
    with trio.fail_after(60):
        while await orphans(host):
            await trio.sleep(0.1)

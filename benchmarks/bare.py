"""The program to compare the agent with: Trio and httpx, one mTLS long-poll, nothing else.

python -m benchmarks.bare URL CA CERTIFICATE KEY
"""

import contextlib
import ssl
import sys

# Without its command line and without HTTP/2, as where nothing else is installed, and as in the agent.
for absent in ("httpx._main", "h2"):
    sys.modules[absent] = None  # type: ignore[assignment]

import httpx  # noqa: E402  # after the line above
import trio  # noqa: E402

WAIT_S = 60


async def hold(url: str, ca: str, certificate: str, key: str) -> None:
    """Long-poll for ever; after a failure, again in a second."""
    context = ssl.create_default_context(cafile=ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, key)
    async with httpx.AsyncClient(base_url=url, verify=context, timeout=WAIT_S + 5, trust_env=False) as client:
        while True:
            with contextlib.suppress(httpx.HTTPError):
                await client.get("/v1/agent/dispatch", params={"wait": WAIT_S})
            await trio.sleep(1)


if __name__ == "__main__":
    _, url, ca, certificate, key = sys.argv
    trio.run(hold, url, ca, certificate, key)

"""Answer what can be built, for those who want every host or do not know what the repository is called here.

Nothing is built, and nothing is told but names. Questions wait for each other, so that nobody keeps a builder busy by
asking; one that is none is passed over.
"""

import functools
import logging
from typing import Final

import trio

from messaging.errors import LinkError
from messaging.link import Link, Message
from nixfleet.builder.errors import BuildError
from nixfleet.builder.messages import (
    HostsAnswer,
    HostsQuestion,
    MessageError,
    Subjects,
    decode_hosts_question,
    encode,
)
from nixfleet.builder.nix_log import plain
from nixfleet.builder.work import Works
from nixfleet.clock import in_words
from nixfleet.update.errors import DiskError

EVALUATE_S: Final = 900.0
AT_ONCE: Final = 2
log = logging.getLogger(__name__)


async def answer_hosts(link: Link, subjects: Subjects, works: Works) -> None:
    """Answer every such question until it is cancelled; of several builders one answers each."""
    try:
        await _answer(link, subjects, works)
    except LinkError as error:  # whoever serves jobs finds out as well, and connects anew
        log.warning("%s: no longer answered: %s", subjects.hosts, error)


async def _answer(link: Link, subjects: Subjects, works: Works) -> None:
    turns = trio.CapacityLimiter(AT_ONCE)
    async with link.subscribed(subjects.hosts, queue="builders") as questions, trio.open_nursery() as nursery:
        async for message in questions:
            try:
                question = decode_hosts_question(message.data)
            except MessageError as error:
                log.warning("%s: %s", message.subject, error)
                continue
            if message.reply:
                nursery.start_soon(functools.partial(_reply, link, message, question, works, turns))


async def _reply(
    link: Link, message: Message, question: HostsQuestion, works: Works, turns: trio.CapacityLimiter
) -> None:
    async with turns:
        answer = await hosts_of(works, question)
    try:
        await link.publish(message.reply, encode(answer))
    except LinkError as error:  # whoever asked asks again
        log.warning("%s: not answered: %s", message.subject, error)


async def hosts_of(works: Works, question: HostsQuestion) -> HostsAnswer:
    """The answer to one question. What git, Nix or the disk do about it is in its `why`."""
    known = sorted(works.mirrors)
    name = question.repository or (known[0] if len(known) == 1 else "")
    if name not in works.mirrors:
        has = f"the builder has {', '.join(known)}"
        return HostsAnswer(why=f"it has no repository {name}; {has}" if name else f"{has}: name one of them")
    if question.names_only:
        return HostsAnswer(repository=name)
    try:
        with trio.fail_after(EVALUATE_S):
            commit, hosts = await works.hosts(name, question.revision)
    except trio.TooSlowError:
        why = f"the hosts of {name} were not known within {in_words(round(EVALUATE_S * 1000))}"
        return HostsAnswer(repository=name, why=why)
    except BuildError as error:
        return HostsAnswer(repository=name, why=plain(str(error)))
    except OSError as error:
        return HostsAnswer(repository=name, why=str(DiskError.of(error)))
    return HostsAnswer(repository=name, commit=commit, hosts=hosts)

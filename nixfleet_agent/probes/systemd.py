"""Ask systemd over D-Bus: is this unit active, how many units have failed.

One connection to the system bus is kept for all probes and made again when it breaks. There is no task behind it:
a call sends, then reads until its answer is there. A bus or a manager that cannot be asked is a failure of the probe.
"""

import contextlib
import string
import struct
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from nixfleet_agent.probes.kinds import FailedUnitsProbe, SystemdProbe
from nixfleet_agent.probes.reading import PASSED, Outcome, cause_of, failed

# jeepney is imported when the first systemd probe runs: most hosts that have none never load it.
if TYPE_CHECKING:
    from jeepney import Message
    from jeepney.io.trio import DBusConnection

SYSTEM_BUS: Final = "unix:path=/run/dbus/system_bus_socket"

_SERVICE: Final = "org.freedesktop.systemd1"
_ROOT: Final = "/org/freedesktop/systemd1"
_UNIT_TYPES: Final = frozenset(
    {"service", "socket", "device", "mount", "automount", "swap", "target", "path", "timer", "slice", "scope"}
)

_LETTERS: Final = frozenset(string.ascii_letters.encode())
_LETTERS_AND_DIGITS: Final = _LETTERS | frozenset(string.digits.encode())

_ACTIVE: Final = frozenset({"active", "reloading", "refreshing"})
"""What `systemctl is-active` passes as well: the unit runs, and is reading its configuration again."""

# A bus that closes, refuses or talks nonsense. The last four are how jeepney's parser puts the latter.
_BROKEN: Final = (
    OSError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    trio.EndOfChannel,
    ValueError,
    TypeError,
    LookupError,
    struct.error,
)


@attrs.frozen(kw_only=True)
class BusError(Exception):
    """systemd could not be asked, or did not want to answer."""

    address: str
    cause: str

    def __str__(self) -> str:
        return f"nothing learned from systemd over {self.address}: {self.cause}"


class SystemBus:
    """A kept connection to the message bus. `address` is a D-Bus address of a unix socket."""

    def __init__(self, address: str = SYSTEM_BUS) -> None:
        self.address = address
        self._idle: DBusConnection | None = None
        self._turn = trio.Lock()

    async def call(self, message: "Message") -> tuple[Any, ...]:
        """Send a method call and return the body of the answer, one call at a time. Raises `BusError`."""
        try:
            async with self._turn:
                reply = await self._exchange(message)
        except _BROKEN as error:
            raise BusError(address=self.address, cause=cause_of(error)) from error
        return self._body(reply)

    def close(self) -> None:
        """Drop the connection; the next call makes another."""
        if self._idle is not None:
            self._idle.socket.close()
            self._idle = None

    async def _exchange(self, message: "Message") -> "Message":
        if self._idle is not None:
            # The bus may have been restarted since the last call; that is not a failure of what is asked for.
            with contextlib.suppress(*_BROKEN):
                return await self._exchange_over(self._idle, message)
        return await self._exchange_over(await _open(self.address), message)

    async def _exchange_over(self, connection: "DBusConnection", message: "Message") -> "Message":
        # Kept only after a whole exchange: behind one that was given up, a late answer would be waiting.
        self._idle = None
        try:
            reply = await _send_and_receive(connection, message)
            self._idle = connection
        finally:
            if self._idle is None:
                connection.socket.close()
        return reply

    def _body(self, reply: "Message") -> tuple[Any, ...]:
        from jeepney import DBusErrorResponse
        from jeepney.wrappers import unwrap_msg

        try:
            body: tuple[Any, ...] = unwrap_msg(reply)
        except DBusErrorResponse as error:
            words = str(error.data[0]) if error.data else str(error.name)
            raise BusError(address=self.address, cause=words) from error
        return body


async def run_systemd(probe: SystemdProbe, bus: SystemBus) -> Outcome:
    """Passes when every unit is active; names those that are not, and what they are instead."""
    try:
        states = [(unit, await _state(unit, bus)) for unit in probe.units]
    except BusError as error:
        return failed(str(error))
    sick = [f"{unit} is {state}" for unit, state in states if state not in _ACTIVE]
    return failed("; ".join(sick)) if sick else PASSED


async def run_failed_units(probe: FailedUnitsProbe, bus: SystemBus) -> Outcome:
    """Passes while no more units are failed than the policy allows."""
    try:
        names = await systemd_failed_units(bus)
    except BusError as error:
        return failed(str(error))
    if len(names) <= probe.max:
        return PASSED
    return failed(f"failed units ({len(names)}, at most {probe.max} allowed): {', '.join(names)}")


async def systemd_failed_units(bus: SystemBus) -> tuple[str, ...]:
    """The names of the units whose ActiveState is `failed`, sorted. Raises `BusError`."""
    from jeepney import DBusAddress, new_method_call

    manager = DBusAddress(_ROOT, bus_name=_SERVICE, interface=f"{_SERVICE}.Manager")
    body = await bus.call(new_method_call(manager, "ListUnitsFiltered", "as", (["failed"],)))
    try:
        # The filter also takes units that failed to load (`LoadState`); the policy counts those that failed to run.
        return tuple(sorted(str(unit[0]) for unit in body[0] if unit[3] == "failed"))
    except (LookupError, TypeError) as error:
        raise BusError(address=bus.address, cause="the list of failed units has an unknown shape") from error


async def _state(unit: str, bus: SystemBus) -> str:
    """The unit's ActiveState, or `not-found` and the like for one that is not loaded."""
    state = await _property(unit, "ActiveState", bus)
    if state in _ACTIVE:
        return state
    loaded = await _property(unit, "LoadState", bus)
    return state if loaded == "loaded" else loaded


async def _property(unit: str, name: str, bus: SystemBus) -> str:
    from jeepney import DBusAddress, Properties

    address = DBusAddress(unit_path(unit), bus_name=_SERVICE, interface=f"{_SERVICE}.Unit")
    body = await bus.call(Properties(address).get(name))
    match body:
        case ((_, str(value)),):
            return value
        case _:
            raise BusError(address=bus.address, cause=f"{name} of {unit} has an unknown shape")


def unit_path(unit: str) -> str:
    """The object path of a unit: every byte but letters and digits as `_xx` (sd_bus_path_encode(3)).

    Asking for a property by this path makes systemd load the unit, so one that never ran answers too. As systemctl
    does, a name without a type is taken for a service.
    """
    whole = unit if unit.rpartition(".")[2] in _UNIT_TYPES else f"{unit}.service"
    # A digit in the first place is written as code too, because no path element may begin with one.
    label = "".join(
        chr(byte) if byte in (_LETTERS if place == 0 else _LETTERS_AND_DIGITS) else f"_{byte:02x}"
        for place, byte in enumerate(whole.encode())
    )
    return f"{_ROOT}/unit/{label}"


async def _open(address: str) -> "DBusConnection":
    """Connect, authenticate as this user, say hello.

    jeepney's own function for this turns in circles when the bus hangs up while authenticating, and leaves the socket
    open when it fails.
    """
    from jeepney.auth import BEGIN, Authenticator
    from jeepney.bus_messages import message_bus
    from jeepney.io.trio import DBusConnection

    stream = await trio.open_unix_socket(_socket_path(address))
    with contextlib.ExitStack() as undo:
        undo.callback(stream.socket.close)
        authenticator = Authenticator(inc_null_byte=False)
        await stream.send_all(b"\0")
        for line in authenticator:
            await stream.send_all(line)
            authenticator.feed(await _some(stream))
        await stream.send_all(BEGIN)
        connection = DBusConnection(stream.socket)
        await _send_and_receive(connection, message_bus.Hello())
        undo.pop_all()
    return connection


def _socket_path(address: str) -> str:
    from jeepney.bus import get_bus

    try:
        path: str = get_bus(address)
    except RuntimeError as error:
        raise ValueError("only D-Bus addresses of unix sockets are understood") from error
    return path


async def _some(stream: trio.SocketStream) -> bytes:
    data = bytes(await stream.receive_some())
    if not data:
        raise trio.EndOfChannel("the bus hung up")
    return data


async def _send_and_receive(connection: "DBusConnection", message: "Message") -> "Message":
    from jeepney import HeaderFields

    serial = next(connection.outgoing_serial)
    await connection.send(message, serial=serial)
    while True:
        reply = await connection.receive()
        # Signals of the bus itself (NameAcquired) come unasked and are of no interest.
        if reply.header.fields.get(HeaderFields.reply_serial) == serial:
            return reply

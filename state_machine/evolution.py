"""Frozen values with some members replaced, at the price of copying them.

`evolve` is `attrs.evolve` for classes without validators, converters and private members: it does not run `__init__`,
which would set each member by way of the guard against being set. With `slots=False` a copy costs an eighth, and takes
four times the memory: that is for the few large values of which there is one, and which every step replaces.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attrs import evolve as evolve  # under this name mypy knows which members there are, and of which types
else:
    import functools
    import operator

    import attrs

    def evolve(value, /, **changes):
        """`value` with some members replaced.

        Raises:
            TypeError: a change names no member.
        """
        cls = value.__class__
        copy = object.__new__(cls)
        if hasattr(value, "__dict__"):
            before = value.__dict__
            members = {**before, **changes}
            # Its own dictionary and not an update of the one that comes with it: that one is slow to read.
            object.__setattr__(copy, "__dict__", members)
            if len(members) != len(before):
                raise _no_such(cls, changes)
            return copy
        read, setters = _slots(cls)
        for put, member in zip(setters.values(), read(value), strict=True):
            put(copy, member)
        for name, member in changes.items():
            if name not in setters:
                raise _no_such(cls, changes)
            setters[name](copy, member)
        return copy

    @functools.cache
    def _slots(cls):
        """How to read all members at once, and how to set each."""
        names = [member.name for member in attrs.fields(cls)]
        return operator.attrgetter(*names), {name: getattr(cls, name).__set__ for name in names}

    def _no_such(cls, changes):
        names = changes.keys() - {member.name for member in attrs.fields(cls)}
        return TypeError(f"{cls.__name__} has no {', '.join(sorted(names))}")

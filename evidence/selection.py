"""Which controls of a host's compliance evidence a probe looks at (protocol section 6.4).

Apart from `evidence.compliance`, which reads and proves the evidence and which only hosts with such a probe load.
"""

from collections.abc import Mapping

import attrs

from state_machine.values import ProbeMode


@attrs.frozen(kw_only=True)
class ControlRule:
    """How one control is treated, and why. A `mode` of None leaves it to the probe."""

    mode: ProbeMode | None = None
    reason: str = ""


@attrs.frozen(kw_only=True)
class FrameworkSelection:
    """Every control that counts for `framework`, with exceptions by control id."""

    framework: str
    overrides: Mapping[str, ControlRule] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class ControlSelection:
    """These controls, whatever frameworks they count for."""

    controls: Mapping[str, ControlRule]


Selection = FrameworkSelection | ControlSelection

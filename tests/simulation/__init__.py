"""A fleet in a simulated world: years of simulated time, every fault at every moment, all of it from one number.

`scenario` says what will happen, `faults` what may go wrong, `judge` what must be true all the same, `trace` what
happened. `core_depth` plays a scenario with the real decisions (`step`, planner, lifecycle), `full_depth` with the real
programs. See docs/simulation.md.
"""

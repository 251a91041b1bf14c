"""A fleet of agents as cheap clients against the real control plane: how many it bears, and what they cost it.

`python -m tests.load` is the program (`make load`), `stage` the control plane, `crowd` the process that plays agents.
"""

"""Kill the agent everywhere: whatever instant takes it, the next one ends where one that was never killed would have.

`everywhere` is exhaustive and in process: the real runtime, applier, workers and journal in the simulated `world`; each
crash point of a standard run is the disk and the world as they were at that instant, and a new agent is started from
there. `lanes` is the same with real processes, real TLS, real switches and `kill -9` at random instants.
"""

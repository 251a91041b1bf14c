"""Health probes: what a host declares to be checked, and the tasks that check it.

`declaration` reads the health checks file, `kinds` has the probes it may declare, `runners` runs one of them once and
`worker` runs all of them for as long as the agent lives. Nothing here knows what a failure leads to.
"""

"""The peer of the agents: it enrols hosts, routes signed intent to them and keeps what they report.

It signs no intent and is not trusted by agents: whatever it hands out, they prove again. Read `entries.py` (what can
happen), `book.py` (what it leads to), then `planner_loop.py` and the routes.
"""

"""Obey and observe: bring a closure into the store, switch the host to it, and say what was seen.

Nothing here decides whether to switch, retry or roll back; `step` does. What this package promises instead: nothing is
switched that Nix (or the directory store's signature) has not vouched for, nothing is switched twice for one order,
and a report says "switched" only when the switch exited 0 and the host runs what was asked for.
"""

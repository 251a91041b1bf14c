"""Proof before and after: what is checked before the agent acts, and what it can show once it has acted.

Before: canonical JSON, trust roots, strict signatures and the ordered checks of signed artifacts and tokens. After:
the hash chain of the journal, its signatures by the host key, and their export for stock `ssh-keygen`. Every refusal
is an `EvidenceError` with a stable `Reason`; no function here reads a clock, the caller says what time it is.
"""

"""Prove what a host did from its journal's export: whose it is, that it is whole, and who allowed each switch."""

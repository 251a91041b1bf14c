"""What the programs cost and how fast they answer, side by side on this machine. See `python -m benchmarks --help`.

Every figure stands beside another one of the same run where there is one to compare with. Nothing here asserts a
time: a table for people, and the same as JSON for whoever draws lines.
"""

"""Answers in, numbers out: paired statistics, divergence, sequential verdicts. Pure numpy and scipy, no I/O.

Every function takes arrays and returns numbers or frozen records; none reads, writes, or remembers anything.
"""

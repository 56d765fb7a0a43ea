"""Faults on purpose, and what became of them: python -m benchmarks.faults [--only=kills,flips] [--seed=0]

Damages files, pictures, settings and runs, and prints a table of how many faults were tried, refused in
one sentence, harmless, or wrong: other results without a word, a traceback, lost work. Ends with status 1
if anything is wrong.
"""

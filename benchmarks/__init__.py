"""Benchmarks of tapeseal, each beside a bare C loop and beside what else there is.

`python -m benchmarks` compares all in one run, one process per library, in interleaved rounds, and prints one table and
one plot per question. `pytest benchmarks` times the same jobs under pytest-benchmark. Ratios within one run count;
absolute times do not.
"""

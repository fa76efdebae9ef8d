"""Microbenchmarks of the four operations: `python -m fairhuman.kernels.bench`.

Every contender of a case runs in the same process and in turn with the others, after ours has
passed a check against float64; what is reported are quantiles of its rounds.
"""

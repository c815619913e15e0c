"""The Triton path: kernels for NVIDIA cards of compute capability 8.0 and later, one file for each op.

Nothing here is imported before something is to be computed on a card (or under Triton's interpreter): `ops` does that.
Each module has functions with the signatures of `ops`, checks its arguments before it launches anything, and leaves
the arithmetic to be read in `reference`.
"""

"""The audit of released result files: every accuracy recomputed from the verdicts in them, with an interval.

``files`` reads the authors' layouts (``layouts.yaml``), ``numbers`` computes, ``tables`` and ``plots`` show the
results, and ``export`` writes our own runs in the same layouts. ``python -m seal_lib.audit FILE…`` prints the results.
"""

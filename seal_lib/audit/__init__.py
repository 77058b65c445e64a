"""Released result files read again: every accuracy recomputed from the verdicts in them, with an interval and an n.

``files`` reads the authors' layouts (``layouts.yaml``), ``numbers`` computes, ``tables`` and ``plots`` show, ``export``
writes our own runs in the same layouts. ``python -m seal_lib.audit FILE…`` prints what it finds.
"""

"""Self-edits applied one after the other: what the model still knows afterwards, and what each remedy keeps.

``metrics`` defines the numbers on an accuracy matrix, ``intervals`` gives them intervals over sequences and compares
arms; both need only numpy. ``python -m seal_lib.continual facts FILE.json`` prints them for a finished matrix.
"""

"""The forgetting study: self-edits applied one after another, what the model forgets, and what each remedy keeps.

``metrics`` defines the numbers on an accuracy matrix. ``intervals`` gives them confidence intervals over sequences and
compares arms. Both need only numpy and scipy. ``python -m seal_lib.continual facts FILE.json`` prints the numbers of a
finished matrix.
"""

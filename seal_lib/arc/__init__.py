"""The ARC domain: tasks as text, augmentations, leave-one-out training data, JSON self-edits, and voting.

It implements the interface of `seal_lib.loops.domain` and holds no model code.
"""

"""A person's own documents: learn, ask, keep, revert.

``texts``: files → passages. ``retrieval``: which passage a question is about. ``learning``: passages → self-edits →
adapters, through the loops. ``asking``: a question to what was learned. ``database``: the folder that keeps it all.
``commands``: the same from a shell, ``seal learn | ask | list | show | revert | export``.
"""

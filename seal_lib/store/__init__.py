"""A person's own documents: learn from them, ask about them, keep and revert what was learned.

``texts`` reads files into passages. ``retrieval`` finds the passage that a question is about. ``learning`` turns
passages into self-edits and adapters, through the loops. ``asking`` answers questions about what was learned.
``database`` is the folder that keeps it all. ``commands`` offers the same from a shell,
``seal learn | ask | list | show | revert | export``; ``sessions`` loads what they need.
"""

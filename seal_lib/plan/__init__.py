"""What a scale needs and costs, before anything is loaded or run: ``python -m seal_lib.plan --scale paper``.

``lengths`` (recorded, of passages, self-edits and puzzles) → ``counts`` (what each notebook will do) → ``costs`` (what
that takes on a device) and ``needs`` (parameters, data, models, memory, disk). No network, no weights; torch only
where update rules are asked what they cost.
"""

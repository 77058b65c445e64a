"""What a scale needs and costs, before anything is loaded or run: ``python -m seal_lib.plan --scale paper``.

``cells`` runs what a notebook does with stand-ins that count (``dry``; ``dry_study`` for the forgetting study) and have
recorded ``lengths`` → ``costs`` (what that takes on a device) and ``needs`` (parameters, data, models, memory, disk).
No network, no weights; torch only where update rules are asked what they cost.
"""

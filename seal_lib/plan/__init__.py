"""Estimate what a scale needs and costs before anything is loaded or run: ``python -m seal_lib.plan --scale paper``.

``cells`` runs a notebook's own statements with stand-ins that count the work (``dry``; ``dry_study`` for the forgetting
study) and whose texts have recorded ``lengths``. ``costs`` turns that work into time on a device, and ``needs`` into
parameters, data, models, memory and disk. Uses no network and no weights, and torch only for the update rules of the
study.
"""

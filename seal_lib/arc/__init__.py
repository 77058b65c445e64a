"""The ARC domain: tasks and their text, augmentations, leave-one-out data, JSON self-edits, voting. No model code."""

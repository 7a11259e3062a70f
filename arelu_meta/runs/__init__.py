"""Run folders: what a run has reported is on disk."""

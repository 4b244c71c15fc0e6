"""Rollout of a fleet's plan in batches. A gate judges each batch; if too much fails, changes are taken back."""

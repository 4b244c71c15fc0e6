"""Rollout of a fleet's plan: batch by batch, behind a gate, with a journal, and taken back if too much fails."""

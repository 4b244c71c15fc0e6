"""Updates of environments: rolling replacement, trial of the new version, return to the previous version."""

"""Updates of environments: rolled out, proved, and taken back."""

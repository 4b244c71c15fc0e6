"""Tenants: parties on one host that don't trust each other. Their names, permissions, quotas and separation. Pure."""

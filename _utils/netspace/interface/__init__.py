"""Virtual interfaces: one network namespace per environment, owned by the host, default drop."""

"""Virtual interfaces: a network namespace per environment, owned by the host, default drop."""

"""Virtual interfaces: one network namespace per environment, owned by the host. Packets are dropped by default."""

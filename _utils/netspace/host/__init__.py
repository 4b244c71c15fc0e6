"""One host: joins attestation, interfaces, links and environments."""

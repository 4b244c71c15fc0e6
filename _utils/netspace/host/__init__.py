"""One host: coordinates attestation, interfaces, links and environments."""

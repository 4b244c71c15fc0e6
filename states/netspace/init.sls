{#- Everything that pillar:netspace declares for this host, one state per kind of thing. #}
include:
  - netspace.attestation
  - netspace.interfaces
  - netspace.links
  - netspace.environments

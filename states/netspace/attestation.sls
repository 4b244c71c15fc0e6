{#- The trust that this host has, before anything that may demand it. #}
netspace attestation:
  netspace_attestation.required

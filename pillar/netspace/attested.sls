{#- The demo's shop on a host with a TPM, where 'orders' runs on trusted hosts only. #}
include:
  - netspace.demo

netspace:
  attestation:
    policy: prefer
    minimum: L3
    tpm: {{ opts.get('netspace.demo_tpm', 'device:/dev/tpmrm0') }}
  environments:
    orders:
      attestation: {policy: require, minimum: L2}

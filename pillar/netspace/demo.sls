{#- A shop in three environments. 'web' may ask 'orders'; 'till' may send to 'orders';
    nothing else can reach anything. The image is the one that scripts/demo builds. #}
{%- set image = 'tar:' ~ opts.get('netspace.demo_image', '/srv/images/demo.tar') %}
netspace:
  # Without a TPM (tpm: device:/dev/tpmrm0) the host attests by a software key: L1.
  attestation:
    policy: prefer
    minimum: L1

  environments:
    orders:
      image: {{ image }}
      command: [/usr/bin/python3, /demo/orders.py]
      limits: {memory: 64M, cpus: 0.5, pids: 16}
      # An interface that lets nothing pass: give it 'allow' rules to open it.
      interface: {kind: veth}

    web:
      image: {{ image }}
      command: [/usr/bin/python3, /demo/web.py]
      limits: {memory: 64M, cpus: 0.5, pids: 16}

    till:
      image: {{ image }}
      command: [/usr/bin/python3, /demo/till.py]
      limits: {memory: 64M, cpus: 0.5, pids: 16}

  links:
    - {from: web, to: orders, pattern: request}
    - {from: till, to: orders, pattern: send}

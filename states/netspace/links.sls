{#- The broker, if any link is declared, and the links. #}
include:
  - netspace.interfaces

netspace links:
  netspace_link.managed:
    - require:
      - netspace_interface: netspace interfaces

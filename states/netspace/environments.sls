{#- The environments themselves. Links that can't be made don't keep them from running. #}
include:
  - netspace.interfaces

netspace environments:
  netspace_environment.managed:
    - require:
      - netspace_interface: netspace interfaces

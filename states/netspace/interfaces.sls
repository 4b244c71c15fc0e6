{#- A network namespace for every environment, and the interfaces declared. #}
netspace interfaces:
  netspace_interface.managed

{#- The environments themselves. They follow the interfaces by the order of this file, and require none: an interface
    or a link that can't be made keeps its own environment from running, and no others. #}
include:
  - netspace.interfaces

netspace environments:
  netspace_environment.managed

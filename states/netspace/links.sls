{#- The broker, if any link is declared, and the links. They follow the interfaces by the order of this file, and
    require none: an interface that can't be made keeps its own environment's links from being made, and no others. #}
include:
  - netspace.interfaces

netspace links:
  netspace_link.managed

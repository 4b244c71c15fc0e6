{#- What a host needs to run environments and links (Debian). The services of a package
    that is new here are masked, since netspace runs its own; others are left alone. #}
{%- import_yaml "netspace/packages.yaml" as packages %}
{%- set missing = packages.host | reject("in", salt["pkg.list_pkgs"]()) | list %}

{%- if grains["init"] == "systemd" %}
{%- for service in packages.services if service in missing or (service == "epmd" and "rabbitmq-server" in missing) %}
{%- for unit in [service] + (["epmd.socket"] if service == "epmd" else []) %}
netspace masks {{ unit }}:
  service.masked:
    - name: {{ unit }}
    - require_in:
      - pkg: netspace packages
{%- endfor %}
{%- endfor %}
{%- endif %}

netspace packages:
  pkg.installed:
    - pkgs: {{ packages.host | json }}
    - install_recommends: False

{#- What a host needs to run environments and links (Debian), and what netspace's library needs in
    Salt's own Python. This file calls nothing of netspace, so it works before that is there. The services of a package
    that is new here are masked, since netspace runs its own; others are left alone.
    Other runtimes than crun only where the pillar names them; a package's name begins with its runtime's. #}
{%- import_yaml "netspace/packages.yaml" as packages %}
{%- set section = salt["pillar.get"]("netspace", {}) %}
{%- set runtimes = section.get("runtimes") or {} %}
{%- set named = [runtimes.get("default")] %}
{%- for environment in (section.get("environments") or {}).values() %}
{%- do named.append(environment.get("runtime") or (runtimes.get("kernels", "qemu") if environment.get("kernel"))) %}
{%- endfor %}
{%- set wanted = packages.host[:] %}
{%- for package in packages.runtimes if package.split("-")[0] in named %}
{%- do wanted.append(package) %}
{%- endfor %}
{%- set missing = wanted | reject("in", salt["pkg.list_pkgs"]()) | list %}

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
    - pkgs: {{ wanted | json }}
    - install_recommends: False

{%- set python = packages.python + (packages["python-3.10"] if grains["pythonversion"][:2] == [3, 10] else []) %}
{#- Salt's loaders look again afterwards, so that netspace's own states can follow in the same run. #}
netspace python packages:
  pip.installed:
    - pkgs: {{ python | json }}
    - reload_modules: True

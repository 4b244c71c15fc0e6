{#- What a host needs to run environments and links, and what netspace's library needs in Salt's own Python.
    packages.yaml has Debian's names, map.jinja those of other families. This file calls nothing of netspace, so it
    works before that is there. The services of a package that is new here are masked, since netspace runs its own;
    others are left alone.
    Other runtimes than crun only where the pillar names them; a package's name begins with its runtime's. #}
{%- import_yaml "netspace/packages.yaml" as packages %}
{%- from "netspace/map.jinja" import names with context %}
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
{%- set absent = wanted | reject("in", names) | list %}
{%- set here = [] %}
{%- for package in wanted if package in names %}
{%- do here.append(names[package]) %}
{%- endfor %}
{%- set missing = here | reject("in", salt["pkg.list_pkgs"]()) | list %}

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
    - pkgs: {{ here | json }}
    - install_recommends: False

{%- set python = packages.python + (packages["python-3.10"] if grains["pythonversion"][:2] == [3, 10] else []) %}
{#- Salt's loaders look again afterwards, so that netspace's own states can follow in the same run. #}
netspace python packages:
  pip.installed:
    - pkgs: {{ python | json }}
    - reload_modules: True

{%- if absent %}
netspace has no package of:
  test.show_notification:
    - text: "{{ grains["os_family"] }} has no package {{ absent | join(", ") }}: install what is in it by other means"
{%- endif %}

"""Packaging: maps the one source tree, which Salt syncs, to the packages that pip installs.

``_utils/netspace`` is the package ``netspace``. Each plugin folder beside it becomes a subpackage (``_modules`` ->
``netspace.modules``). The ``salt.loader`` entry point of ``pyproject.toml`` names these subpackages to Salt. Nothing is
copied or generated. All other settings are in ``pyproject.toml``.
"""

from setuptools import find_packages, setup

PLUGINS = ("modules", "states", "grains", "runners", "pillar", "beacons", "engines", "resources", "output")
# What targets of the resource type "netspace" have in place of Salt's own modules and states.
OVERLAYS = ("modules", "states")
# The SLS files, for file_roots: 'python -m netspace file-root' tells where pip put them.
SLS = "netspace.sls"

setup(
    package_dir={
        "netspace": "_utils/netspace",
        **{f"netspace.{kind}": f"_{kind}" for kind in PLUGINS},
        SLS: "states",
    },
    packages=[
        *find_packages("_utils", include=["netspace", "netspace.*"]),
        *(f"netspace.{kind}" for kind in PLUGINS),
        *(f"netspace.resources.netspace.{kind}" for kind in OVERLAYS),
        SLS,
    ],
    package_data={SLS: ["netspace/*.sls", "netspace/*.jinja", "netspace/*.yaml"]},
)

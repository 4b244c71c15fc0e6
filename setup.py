"""Packaging: maps the one source tree, which Salt syncs, to what pip installs.

``_utils/netspace`` is the package ``netspace``; each plugin folder beside it becomes
a package of it (``_modules`` -> ``netspace.modules``), which the ``salt.loader`` entry
point of ``pyproject.toml`` then tells Salt. Nothing is copied or generated; all else
is in ``pyproject.toml``.
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

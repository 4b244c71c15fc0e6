"""Print an extra's requirements, one a line: requirements.py PYPROJECT EXTRA."""

import sys

try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib

with open(sys.argv[1], "rb") as stream:
    print(*tomllib.load(stream)["project"]["optional-dependencies"][sys.argv[2]], sep="\n")

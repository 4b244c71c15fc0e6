"""Make the files of a release and check them; see scripts/release.

This script never uploads, tags or commits. It builds a copy of the tracked files, with fixed modes and times, so that
neither the checkout's umask nor an untracked file gets into a release.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
#: By name: the folder of its pyproject.toml.
DISTRIBUTIONS = {"netspace": ".", "netspace-client": "client"}
#: Files with addresses of the project itself.
ADDRESSES = ("pyproject.toml", "client/pyproject.toml", "SECURITY.md", "CODE_OF_CONDUCT.md", "debian/control")
#: pyroma's highest score.
PERFECT = 10
_LINK = re.compile(r"(?<=\]\()(?!https?://|mailto:|#)([^)#\s]+)(#[^)\s]*)?(?=\))")


class Refused(Exception):
    """Error: the release must not be made; the message has the reason."""


def run(*command: str | Path, cwd: Path = ROOT, variables: Mapping[str, str] | None = None) -> str:
    """Run a program; return its output.

    :raises Refused: the program failed.
    """
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **(variables or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise Refused(f"{' '.join(map(str, command[:4]))}: exit {done.returncode}\n{done.stdout[-4000:]}")
    return done.stdout


# -- what fits together ----------------------------------------------------------------------------
def versions(root: Path) -> dict[str, str]:
    """Return the version in each place that has a version.

    The line in the library is authoritative: Salt copies the library to minions without git and without a package's
    metadata. A version from git tags, made when a wheel is built, would be missing there.

    :raises Refused: the places differ.
    """
    places = {
        "_utils/netspace/__init__.py": r'^__version__ = "(.+)"$',
        "client/pyproject.toml": r'^version = "(.+)"$',
        "debian/changelog": r"^netspace \((.+?)(?:-\d+)?\) ",
    }
    found = {}
    for name, pattern in places.items():
        match = re.search(pattern, (root / name).read_text(), re.MULTILINE)
        if match is None:
            raise Refused(f"{name}: has no version; expected a line like {pattern}")
        found[name] = match[1]
    if len(set(found.values())) > 1:
        raise Refused(f"version: differs: {found}; set all three to the same")
    return found


def tagged(root: Path, tags: Sequence[str]) -> list[str]:
    """Return the problems with the version tags *tags* of this commit.

    A commit without a tag has no problem: its files are only for tests.
    """
    if not tags:
        return []
    version = versions(root)["_utils/netspace/__init__.py"]
    problems = [
        f"tag {tag}: the version is {version}; tag this commit v{version}" for tag in tags if tag != f"v{version}"
    ]
    heading = rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$"
    if not re.search(heading, (root / "CHANGELOG.md").read_text(), re.MULTILINE):
        problems.append(
            f"CHANGELOG.md: has no heading '## [{version}] - YYYY-MM-DD'; give this heading to the unreleased changes"
        )
    if left := sorted(path.name for path in (root / "changelog.d").glob("*.*.md")):
        problems.append(f"changelog.d: has {', '.join(left)}; run towncrier build --version {version}")
    for name in ADDRESSES:
        if "example.org" in (root / name).read_text():
            problems.append(f"{name}: names example.org; set the project's addresses")
    return problems


# -- building --------------------------------------------------------------------------------------
def copy(target: Path) -> None:
    """Copy the tracked files, with their present content, to *target*; their modes don't depend on the umask.

    A release is made from one copy, so an edit during the build doesn't change the release.
    """
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    for name in sorted(names.decode().split("\0")):
        source, made = ROOT / name, target / name
        if not name or not os.path.lexists(source):
            continue
        made.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        if source.is_symlink():
            made.symlink_to(os.readlink(source))
            continue
        shutil.copyfile(source, made)
        made.chmod(0o755 if os.access(source, os.X_OK) else 0o644)


def published(text: str, folder: str, files: str) -> str:
    """Return a page with links that work everywhere, since a package index shows only this page of the repository.

    :param text: Markdown.
    :param folder: the page's folder, as a path in the repository.
    :param files: the address below which the files of the repository can be read; ends with a slash.
    :raises Refused: a link doesn't lead to a file of the repository.
    """

    def absolute(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, match[1]))
        if path.startswith("..") or not (ROOT / path).exists():
            raise Refused(f"{posixpath.join(folder, 'README.md')}: links to {match[1]}, which is not a file here")
        return f"{files}{path}{match[2] or ''}"

    return _LINK.sub(absolute, text)


def with_whole_links(source: Path) -> None:
    """Make the links of each distribution's README in *source* absolute.

    The changelog's address in each pyproject.toml shows where the files of the repository can be read.
    """
    for folder in DISTRIBUTIONS.values():
        project = tomllib.loads((source / folder / "pyproject.toml").read_text())["project"]
        files = project["urls"]["Changelog"].removesuffix("CHANGELOG.md")
        page = source / folder / project["readme"]
        page.write_text(published(page.read_text(), folder, files))


def pack_again(sdist: Path, time: int) -> None:
    """Replace *sdist* by an archive with the same members, sorted, without owner, and with equal times.

    setuptools writes the builder's name and the present time into its archive, and has no setting against this.

    :param time: seconds since the epoch.
    """
    made = sdist.with_suffix(".new")
    with (
        tarfile.open(sdist) as old,
        made.open("wb") as raw,
        gzip.GzipFile("", "wb", mtime=time, fileobj=raw) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda one: one.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = time, 0, 0, "", ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member) if member.isreg() else None)
    made.replace(sdist)


def build(tree: Path, out: Path, time: int, *, debian: bool) -> None:
    """Make all files of the release in *out*, which is empty.

    :param tree: the copy of the tracked files.
    """
    os.umask(0o022)  # a wheel has the modes of the files that it is made from
    variables = {"SOURCE_DATE_EPOCH": str(time), "PYTHONHASHSEED": "0"}
    with tempfile.TemporaryDirectory(prefix="netspace-release-", dir=ROOT / ".cache") as folder:
        source = Path(folder) / "netspace"
        shutil.copytree(tree, source, symlinks=True)
        for name in DISTRIBUTIONS.values():
            run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source / name, variables=variables)
        for sdist in out.glob("*.tar.gz"):
            pack_again(sdist, time)
        for wheel in sorted(out.glob("*.whl")):
            bill_of_materials(wheel, Path(folder) / wheel.stem, out)
        if debian:
            clean = Path(folder) / "debian-source" / "netspace"
            shutil.copytree(tree, clean, symlinks=True)
            package(clean, out)


def bill_of_materials(wheel: Path, folder: Path, out: Path) -> None:
    """Install *wheel* into a separate venv, and write the venv's packages as a CycloneDX file."""
    venv.create(folder, with_pip=False, clear=True)
    python = folder / "bin/python"
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--no-input", "--no-compile", wheel)
    if wheel.name.startswith("netspace-"):
        run(python, "-I", "-m", "netspace", "file-root")
    name = wheel.name.split("-py3")[0].replace("_", "-")
    made = out / f"{name}.cdx.json"
    project = ROOT / DISTRIBUTIONS[name.rsplit("-", 1)[0]] / "pyproject.toml"
    run(BIN / "cyclonedx-py", "environment", "--output-reproducible", "--sv", "1.6", "--pyproject", project,
        "--mc-type", "library", "--of", "JSON", "-o", made, python)  # fmt: skip
    document = json.loads(made.read_text())
    # Where pip found the wheel is a path of this machine, and its time that of the build.
    for component in document["components"]:
        component.pop("externalReferences", None)
    made.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


def package(source: Path, out: Path) -> None:
    """Build the Debian packages of *source* into *out*."""
    run("dpkg-buildpackage", "--build=binary", "--no-sign", "--no-check-builddeps", cwd=source,
        variables={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})  # fmt: skip
    for made in source.parent.glob("*.deb"):
        shutil.copy(made, out / made.name)


def previous() -> tuple[str, str]:
    """Return the commit of the previous version, and the version of its Debian package.

    The commit has the last tag. Without any tag, it is the commit that added ``debian/changelog``.
    """
    here = f"v{versions(ROOT)['_utils/netspace/__init__.py']}"
    tags = run("git", "tag", "--list", "v*", "--merged", "HEAD", "--sort=-version:refname").split()
    if earlier := [tag for tag in tags if tag != here]:
        return earlier[0], earlier[0].removeprefix("v")
    (*_, first) = run("git", "log", "--diff-filter=A", "--format=%H", "HEAD", "--", "debian/changelog").split()
    return first, f"{here.removeprefix('v')}~first"


def build_previous(out: Path) -> None:
    """Make the Debian packages of the previous version in *out*, for a test of the upgrade."""
    commit, version = previous()
    mark = out / "FROM"
    if mark.exists() and mark.read_text() == f"{commit}\n":
        return
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    os.umask(0o022)
    with tempfile.TemporaryDirectory(prefix="netspace-previous-", dir=ROOT / ".cache") as folder:
        source = Path(folder) / "netspace"
        source.mkdir()
        run("git", "archive", "--output", Path(folder) / "source.tar", commit)
        run("tar", "-C", source, "-xf", Path(folder) / "source.tar")
        log = source / "debian/changelog"
        log.write_text(re.sub(r"^netspace \(.*?\)", f"netspace ({version})", log.read_text(), count=1))
        package(source, out)
    mark.write_text(f"{commit}\n")


# -- checking --------------------------------------------------------------------------------------
def check(out: Path) -> None:
    """Check the files in *out* with the usual tools (twine, pyroma and others).

    :raises Refused: a tool found a problem.
    """
    wheels, sdists = sorted(out.glob("*.whl")), sorted(out.glob("*.tar.gz"))
    run(BIN / "twine", "check", "--strict", *wheels, *sdists)
    run(BIN / "check-wheel-contents", *wheels)
    for sdist in sdists:
        said = run(BIN / "pyroma", "--min", str(PERFECT), sdist)
        print(f"{sdist.name}: pyroma {re.search(r'Final rating: *(.*)', said)[1]}")  # type: ignore[index]


def sums(out: Path) -> dict[str, str]:
    """Return the sha256 of each file in *out* by its name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.iterdir())}


def release(out: Path, *, twice: bool, debian: bool) -> None:
    """Make the files, check them, and write SHA256SUMS.

    :raises Refused: a check failed, or the second build gave other bytes.
    """
    versions(ROOT)
    tags = run("git", "tag", "--points-at", "HEAD", "--list", "v*").split()
    if problems := tagged(ROOT, tags):
        raise Refused("\n".join(problems))
    time = int(run("git", "log", "-1", "--format=%ct"))
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    os.umask(0o022)
    with tempfile.TemporaryDirectory(prefix="netspace-tree-", dir=ROOT / ".cache") as held:
        tree = Path(held) / "netspace"
        copy(tree)
        with_whole_links(tree)
        build(tree, out, time, debian=debian)
        check(out)
        made = sums(out)
        if twice:
            with tempfile.TemporaryDirectory(prefix="netspace-again-", dir="/var/tmp") as folder:
                os.umask(0o077)
                build(tree, Path(folder), time, debian=debian)
                again = sums(Path(folder))
            differing = [name for name in made.keys() | again.keys() if made.get(name) != again.get(name)]
            if differing:
                raise Refused(f"not reproducible: {', '.join(sorted(differing))}")
            print(f"{len(made)} files: equal bytes when they are made again")
    (out / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for name, digest in made.items()))


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/release", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / ".cache/dist")
    parser.add_argument("--twice", action="store_true")
    parser.add_argument("--deb", action="store_true")
    parser.add_argument("--previous", type=Path)
    options = parser.parse_args()
    try:
        if options.previous:
            build_previous(options.previous.resolve())
        release(options.out.resolve(), twice=options.twice, debian=options.deb)
    except Refused as err:
        print(f"release: {err}", file=sys.stderr)
        return 1
    print(*sorted(path.name for path in options.out.iterdir()), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

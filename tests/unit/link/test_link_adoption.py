"""A host's adoption of its certificate: each refusal names the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from netspace.errors import NetspaceError
from netspace.link.pki import root


def test_text_that_is_no_certificate_is_refused_with_its_remedy(tmp_path: Path) -> None:
    root.request(tmp_path)
    with pytest.raises(NetspaceError, match=r"can't be used \(ValueError\); it has to be .*netspace_link\.certify"):
        root.adopt(tmp_path, "nonsense")
    (tmp_path / root.KEY).unlink()
    with pytest.raises(NetspaceError, match="the key can't be read: No such file"):
        root.adopt(tmp_path, "nonsense")

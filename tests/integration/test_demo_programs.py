"""``scripts/demo --programs`` as an operator sees it: what a program gets from its host, and what is refused."""

from __future__ import annotations

import re
import subprocess

import pytest
from support import checkout

pytestmark = pytest.mark.root
ADMITTED = (
    r'web: values of its card: \{"greeting": "hello", "retries": 3\}',
    r"web: whoami: web, image sha256:[0-9a-f]+\.\.\., on a host of level L2",
    r"web: who\(sales\): orders",
    r"web: who\(payroll\): nobody that it may reach",
    r"web: spawn: its child web-worker-1 runs after \d+ ms",
    r"web: web-worker-1: whoami: web-worker-1; its values: \{\"task\": \"2 figs\"\}",
    r"orders: sold to web-worker-1: 2 figs",
    r"web: orders: proved: web runs the image that I expect, on the host whose key I have",
    r"till: orders: sold to till: 1 melon",
    r"web: secret db: 32 bytes, SHA-256 [0-9a-f]{64}",
    r"of \d{2,} files on the disk, 0 have the secret",
    r"the ciphertext on the disk, and this TPM: opened",
    r"web: unseal: the price of melons",
    r"web: sign: 64 bytes, by a key in the tpm",
)
REFUSED = (
    r"web: a verb that isn't in its declaration: refused: .*the key host of its declaration doesn't list it",
    r"web: a message to books: refused: no link to books is declared",
    r"web-worker-1: spawn: refused: .*spawn",
    r"web-worker-1: 9000 bytes to orders: refused:",
    r"web-worker-1: a message to till: refused: no link to till is declared",
    r"web: a second child: refused:",
    r"web: a value of another type: refused:",
    r"web: a value that the template lacks: refused:",
    r"web: orders, to the same proof once more: refused: the answer to another question",
    r"to its child that shows a proof for web: refused: environment is web, not web-worker-1",
    r"till: a sale: refused: no link to orders",
    r"web: larger messages for till: refused: beyond-right",
    r"web: a right for its worker: refused: link-unknown",
    r"till: the secret of web: refused: no secret db is here",
    r"the ciphertext on the disk, and another machine's TPM: refused:",
    r"till: the value that web sealed: refused: .*another environment",
    r"web: the value that web sealed: refused: .*boot that measured something else",
    r"web: whoami: refused: web may not send whoami to its host",
    r"web: an order: refused: no link to orders",
    r"web: its secret: refused: no secret db is here",
)


def test_programs_have_what_is_declared_until_it_is_revoked() -> None:
    done = subprocess.run([checkout.ROOT / "scripts/demo", "--programs"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    text = " ".join(done.stdout.split())
    lacking = [line for line in (*ADMITTED, *REFUSED) if not re.search(line, text)]
    assert not lacking, f"{lacking} in {done.stdout}"
    assert "each with its first process" in text and text.endswith("s)") and "nothing to do" in text
    assert not (checkout.ROOT / ".cache/programs").exists()

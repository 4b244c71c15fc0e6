"""An adversary for the verifier: worlds where it must say no, a forger with all rights, and a search.

``search`` knows nothing of boots: it tries moves, keeps what gets further, and reports the shortest
sequence that deceives the verifier. ``boots`` and ``bad_boots`` make what a TPM really saw, ``policies``
what a verifier asks of it, ``claims`` and ``forger`` the moves on logs and PCRs; ``worlds`` puts them together.
"""

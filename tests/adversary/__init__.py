"""An adversary for the verifier: worlds where it must say no, a forger with all rights, and a search.

``search`` knows nothing of boots: it tries moves, keeps what gets further, and reports the shortest
sequence that deceives the verifier. ``boots`` makes boots that a TPM really saw, ``policies`` what
a verifier asks of them, ``forger`` the moves on logs and PCRs, ``worlds`` puts them together.
"""

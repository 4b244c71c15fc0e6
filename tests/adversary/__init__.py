"""An adversary for the verifier: worlds where it must refuse, a forger with all rights, and a search.

``search`` has no code about boots: it tries moves, keeps claims that get further, and reports the shortest
sequence that deceives the verifier. ``boots`` and ``bad_boots`` make the measurements of a TPM, ``policies``
the verifier's demands, ``claims`` and ``forger`` the moves on logs and PCRs; ``worlds`` combines them.
"""

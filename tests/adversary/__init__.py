"""An adversary of the verifier: worlds in which the verifier must refuse, a forger with all rights, and a search.

``search`` has no code about boots: it tries moves, keeps claims that pass more of the verifier's checks, and reports
the shortest sequence of moves that deceives the verifier. Two kinds of worlds use the search:

- Boots. ``boots`` and ``bad_boots`` make the measurements of a TPM, ``policies`` makes the verifier's policies,
  ``claims`` and ``forger`` make the moves on logs and PCRs; ``worlds`` combines them.
- Measurement lists. ``list_claims`` makes lines and quotes, ``list_forger`` makes the moves on them; ``lists`` combines
  them.
"""

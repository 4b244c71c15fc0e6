"""Links: rights to exchange messages over the broker, the only connections between environments.

``topology`` computes the broker objects of a set of links (``objects``), their names (``names``) and the changes to
make on a broker (``diff``). ``card`` computes the content of ``environment.json``.

``broker`` runs netspace's own RabbitMQ node, and has a client of its HTTP API (``management``). ``forwarder`` connects
127.0.0.1:5671 in each environment to the broker. ``pki`` issues, stores and renews certificates, and stores the
passwords of environments that log in by password. ``seal`` manages the keys of sealed links. ``mail`` manages dead
letters, parked messages and backups.

``reconciler`` joins these modules to observe, plan and apply; ``plan`` makes the plan, ``apply`` executes it, and
``status`` and ``health`` report the state.
"""

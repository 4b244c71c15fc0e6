"""Links: message-queue rights, the only connections between environments.

Pure: ``model`` computes the broker objects of a set of links, ``names`` their names, ``diff`` the changes to make on a
broker, and ``card`` the content of ``environment.json``.

``broker`` runs netspace's own RabbitMQ node, and ``management`` is a client of its HTTP API. ``forwarder`` connects
127.0.0.1:5671 in each environment to the broker. ``authority`` issues certificates, ``identity`` stores them, and
``renewer`` renews them. ``credentials`` stores the passwords of environments that log in by password.

``kind`` joins these modules to observe, plan and apply; ``planning`` makes the plan, ``changing`` applies it, and
``seeing`` reports the state.
"""

"""Links: the message-queue rights that alone connect environments.

``model`` says which broker objects a set of links is, ``names`` what they are called, ``diff`` what must
change on a broker to get there, ``card`` what an environment is told; all are pure.
``broker`` runs a RabbitMQ node of our own, ``management`` talks to its HTTP API,
``forwarder`` carries each environment's own 127.0.0.1:5671 to it, ``authority`` issues certificates, ``identity``
keeps them (``renewer`` has them replaced) and ``credentials`` the passwords of those that need one; ``planning``,
``changing`` and ``seeing`` are what ``kind`` joins to observe, plan and apply.
"""

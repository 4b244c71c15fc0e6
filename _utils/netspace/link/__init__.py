"""Links: the message-queue rights that alone connect environments.

``model`` says which broker objects a set of links is, ``diff`` what must change on
a broker to get there, ``card`` what an environment is told; all three are pure.
``broker`` runs a RabbitMQ node of our own, ``management`` talks to its HTTP API,
``forwarder`` carries each environment's own 127.0.0.1:5672 to it, ``credentials``
keeps the passwords, and ``kind`` joins them to observe, plan and apply.
"""

"""Between processes: what must arrive goes by gRPC, what must be fresh by ZeroMQ. No pickle.

The only package that imports grpc and zmq. From the bottom up:

- ``pb``: generated from ``proto/``; the messages, and in their comments order and lifetime
- ``wire``, ``wire_specs``: messages <-> what ``core`` calls them, checked
- ``credentials``, ``authority``, ``security``, ``status``: who is who, who may what, how it is said
- ``invitations``, ``joining`` (``https``, ``keys``), ``enrolment``, ``renewal``, ``wallet``,
  ``deeds``: how one becomes a peer, and stays one
- ``tunnel``, ``reconnect``: the way to the head, and staying on it; ``serving``: listening there
- ``tunnel_ssh`` (``ssh_client``, ``ssh_causes``, ``ssh_keys``), ``tunnel_wireguard``
  (``wireguard``, ``wireguard_link``): ways inside of something; ``admission``: how one gets one
- ``experience_client`` (``experience_sender``, ``experience_session``, ``experience_messages``) ->
  ``experience_service``: fragments, exactly once
- ``weights``: versions of policies, by tensor hash
- ``hub_client`` -> ``hub_service``: registry, leases, requests
- ``mailbox``, ``fresh`` -> ``fresh_hub`` (``switchboard``, ``waker``): commands, states, previews
"""

import os

# Before gRPC is imported anywhere. Else its own library writes a line for every stranger whose
# handshake fails, past all logging and as often as they like.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

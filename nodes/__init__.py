"""The processes at the ends of the air: boards and the edge server.

Owns split models and their training roles, the tensor codec, control messages and their
transports, the board agent, telemetry and checkpoints.  torch is imported here and in no other
room.  A node never decides an allocation and never writes the run record.
"""

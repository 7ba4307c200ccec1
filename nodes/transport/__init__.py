"""How messages move: in memory within one event loop, or over ZeroMQ between processes.

Two planes share a wire.  Control carries :mod:`nodes.messages`, at most 64 KiB a frame; bulk
carries weights between rounds, in chunks, and nothing else.  The hub in the controller's process
forwards between nodes, so a board needs to know one address only.
"""

"""Exceptions of the nodes room.

::

    NodeError                    anything below
    ├── MessageError             a control or bulk frame that is refused
    ├── WaitTimeoutError         nothing came within a wall-clock timeout; says what was waited for
    ├── PeerLostError            the peer that was waited for is gone
    └── StoppedError             the controller, or the lifeline, ended this node's work
"""


class NodeError(Exception):
    """Base of every error raised by the transports, messages and roles of :mod:`nodes`."""


class MessageError(NodeError):
    """A frame that is too long, malformed, of another version or on the wrong plane."""


class WaitTimeoutError(NodeError):
    """A wall-clock timeout ran out; the message says what was being waited for."""


class PeerLostError(NodeError):
    """The peer that was waited for has been detached from the run."""


class StoppedError(NodeError):
    """Work was ended from outside: a stop message, a lost controller or a closed lifeline."""

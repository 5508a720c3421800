"""The uplink: has the network, sees no pictures."""

from agent.uplink.uplink import Uplink, run

__all__ = ["Uplink", "run"]

"""The collector: stores the results of all devices and confirms them."""

from agent.collect.collector import Collector, run

__all__ = ["Collector", "run"]

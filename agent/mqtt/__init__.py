"""A connection to a broker that comes back by itself."""

from agent.mqtt.link import NEVER_EXPIRES_S, Acked, Event, Limits, Link, Message, Offline, Online, Session, Will

__all__ = ["NEVER_EXPIRES_S", "Acked", "Event", "Limits", "Link", "Message", "Offline", "Online", "Session", "Will"]

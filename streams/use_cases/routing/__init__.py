"""Routing: which region's gateway should serve a user."""

from streams.use_cases.routing.router import Candidate, Decision, Node, choose

__all__ = ["Candidate", "Decision", "Node", "choose"]
